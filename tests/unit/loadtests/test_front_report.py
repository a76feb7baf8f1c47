"""The figures, plots and page of a load test, and the cost of the front door."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from conserve.config import Settings, SettingsError, load_settings
from loadtests.chat_record import ChatRecord
from loadtests.engine_status import ReplicaStatus, StatusReport
from loadtests.front.bare_server import make_command
from loadtests.front.cost import (
    ALIKE,
    APPLICATION,
    BARE,
    FrontCost,
    Interval,
    describe_bursts,
    find_misses,
    split_stages,
)
from loadtests.front.entrances import GRPC, HTTP, EntranceRecords, Send, measure_entrances
from loadtests.front.figures import ALONE, BESIDE, describe_phase, find_problems, make_report
from loadtests.front.page import write_page
from loadtests.front.plots import write_plots
from loadtests.front.record_file import BatchRecord, Records
from loadtests.front.timeline import Phase, chats_in_flight, measure_harvest, offline_rates
from loadtests.front.turns import TurnsError, median_difference, ratio_of_rounds
from loadtests.front.unhurried import add_unhurried, find_unhurried
from loadtests.front_cost import render
from loadtests.report import Percentiles


def reading(read_s: float, tokens: int | None, running: int = 1, replica: str = "r1") -> StatusReport:
    one = ReplicaStatus(
        replica_id=replica,
        offline_running=running,
        kv_usage=0.25,
        offline_prompt_tokens=tokens,
        offline_output_tokens=0,
    )
    return StatusReport(replicas=[one], read_s=read_s)


def chat(intended_s: float, ended_s: float, error: str | None = None) -> ChatRecord:
    return ChatRecord(intended_s, intended_s, (intended_s + 0.1, intended_s + 0.2), ended_s, 20, 2, error)


def make_phases() -> list[Phase]:
    chats = [chat(100.0 + index, 100.5 + index) for index in range(10)]
    batches = [BatchRecord("b1", 100.0, 100.1, 109.0, "completed", 5, 5, 0, 3)]
    readings = [reading(99.0 + 0.5 * step, 40 * step) for step in range(24)]
    return [
        Phase(ALONE, Records(100.0, list(chats)), 10.0, [reading(101.0, 0, running=0)]),
        Phase(BESIDE, Records(100.0, chats, batches), 10.0, readings),
    ]


def test_the_harvest_is_that_of_the_time_with_offline_work() -> None:
    readings = [
        reading(100.0, 0, 0),
        reading(102.0, 0, 0),
        reading(104.0, 10),
        reading(108.0, 410),
        reading(112.0, 9_999),
    ]
    harvest = measure_harvest(Phase(BESIDE, Records(100.0), 10.0, readings))
    assert harvest is not None
    # Neither the wait for the first request nor what came after the phase.
    assert (harvest.duration_s, harvest.tokens_per_s) == (4.0, 100.0)


@pytest.mark.parametrize(
    "readings",
    [
        [],
        [reading(101.0, 5)],
        [reading(101.0, 5, 0), reading(105.0, 5, 0)],
        [reading(101.0, 50), reading(105.0, 5)],
        [reading(101.0, 50), reading(105.0, 500, replica="r2")],
        [reading(101.0, None), reading(105.0, None)],
    ],
)
def test_a_harvest_that_is_not_known_is_none(readings: list[StatusReport]) -> None:
    assert measure_harvest(Phase(BESIDE, Records(100.0), 10.0, readings)) is None


def test_rates_have_no_point_where_an_engine_was_started_again() -> None:
    found = offline_rates([reading(0.0, 0), reading(1.0, 5), reading(2.0, 200), reading(4.0, 0), reading(6.0, 50)], 2.0)
    assert found == ([1.0, 5.0], [100.0, 25.0])


def test_chats_in_flight_rise_when_they_are_due() -> None:
    times_s, counts = chats_in_flight(Records(0.0, [chat(1.0, 4.0), chat(2.0, 3.0), chat(2.5, 99.0)]), 10.0)
    assert list(zip(times_s, counts, strict=True)) == [
        (0.0, 0),
        (1.0, 1),
        (2.0, 2),
        (2.5, 3),
        (3.0, 2),
        (4.0, 1),
        (10.0, 1),
    ]


def test_figures_of_a_phase() -> None:
    phase = make_phases()[1]
    run = describe_phase(phase)
    assert run.online_tokens_per_s == pytest.approx(10 * 22 / 10)
    assert run.offline_tokens_per_s == pytest.approx(80.0)
    assert run.total_tokens_per_s == pytest.approx(102.0)
    assert (run.online_requests, run.online_errors, run.offline_requests) == (10, 0, 5)
    assert run.end_to_end_ms is not None
    assert run.end_to_end_ms.p50 == pytest.approx(500)


def test_what_failed_is_said() -> None:
    alone, beside = make_phases()
    assert find_problems([alone, beside]) == []
    alone.records.chats[3] = chat(103.0, 104.0, "HTTP 503")
    beside.records.batches[0] = BatchRecord("b1", 0.0, 0.0, 0.0, "completed", 5, 4, 1, 3)
    beside.readings.clear()
    found = find_problems([alone, beside])
    assert found == [
        "online-only: 1 of 10 chats failed, the first with: HTTP 503",
        "conserve: batch b1 (completed): 1 of 5 requests failed",
        "conserve: no offline work was seen",
    ]


def make_cost(difference: Interval, ratio: Interval, direct_ms: float | None = None) -> FrontCost:
    ours, bare = (Percentiles(p50=p50, p90=60, p99=70) for p50 in (58, 50))
    return FrontCost(
        turns=10,
        ttft_ms={APPLICATION: ours, BARE: bare},
        ttft_p50_difference_ms=difference,
        tbt_p50_ms={APPLICATION: 20, BARE: 20},
        rounds=3,
        requests_at_once=16,
        output_tokens_per_s={APPLICATION: 99, BARE: 100},
        burst_tbt_p99_ms={APPLICATION: 110, BARE: 310},
        throughput_ratio=ratio,
        stages_ms={"proxy": 1.0, "ingress": 4.0, "replica": 6.0, BARE: 0.5},
        direct_ttft_p50_ms=direct_ms,
    )


@pytest.mark.parametrize(
    ("direct_ms", "expected"), [(None, [1.0, 3.0, 2.0, 2.5, -0.5]), (53.0, [1.0, 3.0, 1.0, 3.5, -0.5])]
)
def test_stages_add_up_to_the_difference(direct_ms: float | None, expected: list[float]) -> None:
    good = Interval(value=8.0, low=6.0, high=9.0), Interval(value=0.99, low=0.98, high=1.0)
    cost = make_cost(*good, direct_ms)
    added = [value for _, value in split_stages(cost)]
    assert added == pytest.approx(expected)
    assert sum(added) == pytest.approx(8.0)
    assert find_misses(cost) == []
    assert len(render(cost)) == 2


def test_engines_that_compute_the_same_batches_are_compared_where_that_is_measured() -> None:
    cost = make_cost(Interval(value=8.0, low=6.0, high=9.0), Interval(value=0.99, low=0.98, high=1.0))
    assert [row[1:] for row in describe_bursts(cost)] == [
        ("110 ms", "310 ms", "-200 ms"),
        ("99", "100", "99.0% (98.0% to 100.0%)"),
    ]
    slower = Interval(value=0.9, low=0.8, high=0.94)
    both = cost.model_copy(
        update={"objective_ratio": slower, "output_tokens_per_s": {APPLICATION: 90, BARE: 100, ALIKE: 99}}
    )
    assert [row[1:] for row in describe_bursts(both)][1:] == [
        ("90", "100", "90.0% (80.0% to 94.0%)"),
        ("99", "100", "99.0% (98.0% to 100.0%)"),
    ]
    assert find_misses(both) == []


def test_a_class_without_objectives_comes_beside_those_that_are_there() -> None:
    mine = {"mine": {"ttft_slo_ms": 100, "tbt_slo_ms": 50}}
    environ = add_unhurried({"CONSERVE_SLO__CLASSES": json.dumps(mine), "HOME": "/"})
    settings = load_settings({}, environ)
    assert list(settings.slo.by_priority()) == ["mine", "default", "unhurried"]
    assert find_unhurried(settings) == "unhurried"
    assert find_unhurried(load_settings({"engine": {"mode": "stock"}}, environ)) is None
    assert find_unhurried(load_settings({}, {})) is None
    with pytest.raises(SettingsError, match=r"slo\.classes"):
        load_settings({}, add_unhurried({"CONSERVE_SLO__CLASSES": "{"}))


def test_limits_of_the_cost() -> None:
    unsure = make_cost(Interval(value=11.0, low=9.0, high=12.0), Interval(value=0.9, low=0.85, high=0.96))
    assert [miss.endswith("(unsure)") for miss in find_misses(unsure)] == [True, True]
    sure = make_cost(Interval(value=11.0, low=10.5, high=12.0), Interval(value=0.9, low=0.85, high=0.94))
    assert [miss.endswith("(unsure)") for miss in find_misses(sure)] == [False, False]


def test_differences_are_of_pairs() -> None:
    below = [10.0, 20.0, 30.0, 40.0, 50.0] * 4
    found = median_difference([value + 3 for value in below], below)
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))
    ratio = ratio_of_rounds([9.0, 10.0, 22.0], [10.0, 10.0, 20.0])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.0, 0.9, 1.1))


def test_the_bare_server_has_the_settings_of_the_engines() -> None:
    settings = Settings.model_validate(
        {
            "model": {"source": "org/model"},
            "engine": {"max_num_seqs": 7, "max_num_batched_tokens": 333, "dtype": "float32"},
        }
    )
    command = make_command(settings, 9_999, on_cpu=True)
    pairs = dict(pairwise(command))
    assert (pairs["--max-num-seqs"], pairs["--max-num-batched-tokens"], pairs["--dtype"]) == ("7", "333", "float32")
    assert (pairs["serve"], pairs["--port"]) == ("org/model", "9999")
    assert "--max-model-len" not in command
    assert "--enforce-eager" in command
    assert "--enforce-eager" not in make_command(settings, 9_999, on_cpu=False)


def make_entrances(slower: float = 1.5) -> dict[str, EntranceRecords]:
    """Over gRPC everything takes `slower` times as long."""
    found = {}
    for name, factor in ((HTTP, 1.0), (GRPC, slower)):

        def answer(at_s: float, factor: float = factor) -> ChatRecord:
            content_s = (at_s + 0.1 * factor, at_s + 0.15 * factor)
            return ChatRecord(at_s, at_s, content_s, at_s + 0.2 * factor, 20, 2)

        rounds = [[answer(50.0 + number) for _ in range(4)] for number in range(3)]
        found[name] = EntranceRecords([answer(float(number)) for number in range(8)], rounds)
    return found


def test_grpc_and_http_are_runs_of_the_report() -> None:
    report = make_report(make_phases(), "m", "generated", 7, make_entrances())
    assert list(report.runs) == [ALONE, BESIDE, "http", "grpc", "http-at-once", "grpc-at-once"]
    for name, factor in (("http", 1.0), ("grpc", 1.5)):
        single, rounds = report.runs[name], report.runs[f"{name}-at-once"]
        for run in (single, rounds):
            assert run.ttft_ms is not None
            assert run.tbt_ms is not None
            assert run.end_to_end_ms is not None
            found = (run.ttft_ms.p50, run.tbt_ms.p50, run.end_to_end_ms.p50)
            assert found == pytest.approx((100 * factor, 50 * factor, 200 * factor))
        assert (single.online_requests, rounds.online_requests) == (8, 12)
        # Two tokens at a time, and eight.
        assert single.online_output_tokens_per_s == pytest.approx(10 / factor)
        assert rounds.online_output_tokens_per_s == pytest.approx(40 / factor)
    ratios = {name: ratio.median for name, ratio in report.ratios.items() if name.endswith("_grpc_vs_http")}
    assert ratios == pytest.approx(
        {
            "ttft_p50_grpc_vs_http": 1.5,
            "tbt_p50_grpc_vs_http": 1.5,
            "end_to_end_p50_grpc_vs_http": 1.5,
            "output_tokens_grpc_vs_http": 1 / 1.5,
        }
    )


def test_both_entrances_are_asked_by_turns_and_never_the_same() -> None:
    asked: list[tuple[str, str, int]] = []

    def entrance(name: str) -> Send:
        def send(text: str, output_tokens: int) -> ChatRecord:
            asked.append((name, text, output_tokens))
            return chat(1.0, 2.0)

        return send

    found = measure_entrances({name: entrance(name) for name in (HTTP, GRPC)}, turns=4, rounds=2, requests_at_once=3)
    for records in found.values():
        assert (len(records.single), [len(round_) for round_ in records.rounds]) == (4, [3, 3])
    singles = [name for name, _, tokens in asked if tokens == 8]
    assert singles == [GRPC, HTTP, HTTP, GRPC] * 3  # Two of each are the warm-up.
    assert [name for name, _, tokens in asked if tokens != 8] == [HTTP] * 3 + [GRPC] * 6 + [HTTP] * 6 + [GRPC] * 3
    texts = [text for _, text, _ in asked]
    assert len(set(texts)) == len(texts)
    assert {len(text.split()) for text in texts} == {100}


def test_a_chat_that_fails_over_grpc_ends_the_comparison() -> None:
    entrances = {HTTP: lambda *_: chat(1.0, 2.0), GRPC: lambda *_: chat(1.0, 2.0, "UNAVAILABLE: overloaded")}
    with pytest.raises(TurnsError, match="a chat over grpc failed: UNAVAILABLE: overloaded"):
        measure_entrances(entrances, turns=1, rounds=1, requests_at_once=1)


def test_the_page_has_plots_and_figures_in_it(tmp_path: Path) -> None:
    phases = make_phases()
    report = make_report(phases, "a<b>", "generated", 7, make_entrances())
    cost = make_cost(Interval(value=8.0, low=6.0, high=9.0), Interval(value=0.99, low=0.98, high=1.0))
    plots = write_plots(phases, tmp_path)
    assert [plot.name for plot in plots] == ["latency.png", "timeline.png"]
    write_page(tmp_path / "report.html", report, plots, cost, ["x & y failed"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 2
    for text in ("a&lt;b&gt;", "x &amp; y failed", "TTFT p99", "+8.0 ms (+6.0 to +9.0)", "Offline tokens/s"):
        assert text in page
    for row in (("TTFT p50", "100 ms", "150 ms", "1.50 (1.50-1.50)"), ("Chats, one at a time", "8", "8", "")):
        assert "".join(f"<td>{cell}</td>" for cell in row) in page
    write_page(tmp_path / "report.html", make_report(phases, "m", "generated", 7), plots, None, [])
    assert "gRPC" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    # Nothing is fetched from elsewhere.
    assert "http" not in page.replace("https", "http").split("<body>")[0]
