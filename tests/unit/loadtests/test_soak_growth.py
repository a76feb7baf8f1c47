"""What a soak takes for growth."""

from __future__ import annotations

import math
import random

import pytest

from loadtests.soak.growth import PERIOD_S, fit_growth
from loadtests.soak.load import TIDE_S, find_level
from loadtests.soak.page import write_page
from loadtests.soak.plots import write_plots
from loadtests.soak.report import SoakReport, fit_all
from loadtests.soak.sampling import ProcessSample, QueueSample, Sample

TIMES_S = [10.0 * number for number in range(180)]


def test_a_leak_is_found_in_noise() -> None:
    generator = random.Random(1)
    values = [100 + 0.01 * at_s + generator.gauss(0, 2) for at_s in TIMES_S]
    found = fit_growth("memory", "MiB", TIMES_S, values, share=0.02, least=0.0)
    assert found.growth == pytest.approx(0.01 * PERIOD_S, rel=0.2)
    assert found.share == pytest.approx(0.18, rel=0.2)
    assert not found.is_flat


def test_what_goes_up_and_down_is_flat() -> None:
    values = [100 + 5 * math.sin(at_s / 20) for at_s in TIMES_S]
    assert fit_growth("memory", "MiB", TIMES_S, values, share=0.02, least=0.0).is_flat


def test_a_few_outliers_change_nothing() -> None:
    values = [100.0] * 150 + [1_000.0] * 30
    assert fit_growth("memory", "MiB", TIMES_S, values, share=0.02, least=0.0).growth == 0


def test_what_is_small_may_grow_a_little() -> None:
    values = [10 + 0.001 * at_s for at_s in TIMES_S]
    assert fit_growth("files", "", TIMES_S, values, share=0.02, least=5.0).is_flat
    assert not fit_growth("files", "", TIMES_S, values, share=0.02, least=1.0).is_flat


def test_one_sample_is_no_line() -> None:
    with pytest.raises(ValueError, match="too few"):
        fit_growth("memory", "MiB", [0.0], [1.0], share=0.02, least=0.0)


def test_the_tide_goes_from_one_to_all_and_back() -> None:
    levels = [find_level(at_s, 8) for at_s in (0.0, TIDE_S / 2, TIDE_S)]
    assert levels == [1, 8, 1]
    assert {find_level(at_s, 8) for at_s in range(int(TIDE_S))} == set(range(1, 9))


def make_samples(leak_mib: float = 0.0, keys: int = 0) -> list[Sample]:
    """Two processes, and one that comes and goes; `leak_mib` and `keys` come in addition with each sample."""
    samples = []
    for number, at_s in enumerate(TIMES_S[:40]):
        processes = {
            "replica 1": ProcessSample(pss_mib=150, rss_mib=200 + leak_mib * number, files=40, threads=9),
            "front 2": ProcessSample(pss_mib=150, rss_mib=200, files=50, threads=9),
        }
        if number % 2:
            processes["python 3"] = ProcessSample(pss_mib=30, rss_mib=30, files=3, threads=1)
        queue = QueueSample(
            keys=20 + 5 * number + keys * number,
            kept_keys=5 + 5 * number,
            memory_mib=3 + 0.1 * number,
            kept_memory_mib=1 + 0.1 * number,
            batches=1 + number,
            kv_usage=0.3 * (number % 2),
        )
        samples.append(
            Sample(at_s=at_s, processes=processes, shared_files=4, shared_mib=1.0, queue=queue, clients=number % 8)
        )
    return samples


def make_report(samples: list[Sample]) -> SoakReport:
    return SoakReport(
        engine="light", minutes=7, warm_up_minutes=1, load={"chats": 3}, growths=fit_all(samples),
        ended=[], begun=[], samples=samples,
    )  # fmt: skip


def test_batches_that_are_kept_are_no_leak() -> None:
    assert make_report(make_samples()).problems == []


def test_leaks_are_named() -> None:
    problems = make_report(make_samples(leak_mib=1.0, keys=1)).problems
    assert [problem.split(" grows")[0] for problem in problems] == [
        "resident memory of all processes",
        "memory of replica 1",
        "keys of Redis, without batches and files",
    ]


def test_failed_chats_are_a_problem() -> None:
    report = make_report(make_samples())
    report.load["chats failed"] = 2
    assert report.problems == ["2 chats failed"]


def test_a_run_that_was_too_short_says_so() -> None:
    with pytest.raises(ValueError, match="too few"):
        fit_all(make_samples()[:3])


def test_the_page_has_figures_and_plots(tmp_path) -> None:
    report = make_report(make_samples(leak_mib=1.0))
    plots = write_plots(report.samples, 60.0, tmp_path)
    write_page(tmp_path / "soak.html", report, plots, "a machine")
    page = (tmp_path / "soak.html").read_text()
    assert page.count("<img") == 2
    assert "memory of replica 1" in page
    assert '<p class="bad">' in page
