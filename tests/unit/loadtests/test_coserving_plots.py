from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from conserve.engine.options import Objective
from conserve.engine.page import Counters
from loadtests.coserving.plots import (
    bin_offline,
    bin_online,
    choose_styles,
    draw_frontier,
    draw_workload,
    sort_runs,
    write_plots,
)
from loadtests.coserving.results import (
    RUNS,
    CalibrationPoint,
    OfflineRecord,
    OnlineRecord,
    OutputEvent,
    RunResult,
    TokenRates,
    WorkloadResults,
)

NAMES = (*RUNS, "no-token-budget")


def make_run(run: str, slowness: float) -> RunResult:
    """Measured from 10 to 50 s; an online request of 3 tokens every second, an offline prompt of 600 every 2 s."""
    online = () if run == "offline-only" else tuple(make_online(9.5 + index, slowness) for index in range(40))
    offline = () if run == "online-only" else tuple(make_offline(8.0 + 2 * index) for index in range(22))
    return RunResult(run, 1, "chat", 7, "stock", 10.0, 50.0, online, offline, Counters(), Counters(), 1)


def make_online(due_s: float, slowness: float) -> OnlineRecord:
    times_s = [due_s + slowness * (0.1 + due_s / 100), due_s + slowness, due_s + slowness * 1.2]
    return OnlineRecord(due_s, due_s, tuple(OutputEvent(time_s, 1) for time_s in times_s), 30, 3, times_s[-1])


def make_offline(computed_s: float) -> OfflineRecord:
    return OfflineRecord(computed_s - 3, (OutputEvent(computed_s, 1),), 600, 1, computed_s)


def make_point(mode: str, ttft_p99_ms: float | None, **knobs: float) -> CalibrationPoint:
    return CalibrationPoint(mode, knobs, 20.0, 20, 1.0, ttft_p99_ms, 1.0, TokenRates(400.0, 20.0))


RESULTS = WorkloadResults(
    *("chat", "cpu", "a machine", "smol", {}, "generated", 7, 1, 1.25, 4.0, 0.3, 1.2, 40.0),
    objective=Objective(ttft_slo_ms=1_234, tbt_slo_ms=567),
    frontier=(
        make_point("conserve", 300.0, offline_pass_tokens=256.0, max_num_seqs=16.0),
        make_point("conserve", 200.0, offline_pass_tokens=128.0, max_num_seqs=16.0),
        make_point("conserve", None, offline_pass_tokens=64.0, max_num_seqs=16.0),
        make_point("conserve", 400.0, offline_pass_tokens=128.0, token_budget_off=1.0),
        make_point("stock", 900.0, max_num_batched_tokens=512.0),
    ),
    runs=tuple(make_run(name, 0.5 + index) for index, name in enumerate(NAMES)),
)


def read_labels(figure: Figure) -> list[tuple[str, str]]:
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def test_plots_are_written_and_show_something(tmp_path: Path) -> None:
    paths = write_plots(RESULTS, tmp_path / "bench")
    assert [path.name for path in paths] == ["chat.png", "chat.svg", "chat-frontier.png", "chat-frontier.svg"]
    for path in (path for path in paths if path.suffix == ".png"):
        image = imread(path)[:, :, :3]
        height, width, _ = image.shape
        assert width >= 1_000
        dark = np.any(image < 0.9, axis=2)
        assert 0.01 < dark.mean() < 0.5
        # Each half of the picture has something in it.
        for half in (dark[: height // 2], dark[height // 2 :], dark[:, : width // 2], dark[:, width // 2 :]):
            assert half.mean() > 0.005
    text = paths[1].read_text()
    for label in ("TTFT", "objective 1,234 ms", "objective 567 ms", "no-token-budget", "stock-tuned"):
        assert label in text


def test_the_same_results_give_the_same_files(tmp_path: Path) -> None:
    first, second = (write_plots(RESULTS, tmp_path / name) for name in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_axes_are_labelled_with_units() -> None:
    assert read_labels(draw_workload(RESULTS)) == [
        ("Time to first token (TTFT), ms", "Share of requests slower"),
        ("Time between tokens (TBT), ms", "Share of gaps longer"),
        ("", "Online\ntokens/s"),
        ("Time in the measured window of repeat 1, s", "Offline\ntokens/s"),
    ]
    assert read_labels(draw_frontier(RESULTS)) == [
        ("Offline prompt and output tokens/s (more is better)", "P99 TTFT, ms (less is better)"),
    ]


def test_a_latency_line_is_the_share_above_each_value() -> None:
    ttft = draw_workload(replace(RESULTS, runs=(make_run("online-only", 1.0),))).axes[0]
    curve = next(line for line in ttft.lines if len(np.atleast_1d(line.get_xdata())) > 2)
    values = [value for (value,) in make_run("online-only", 1.0).ttft_groups]
    shares = np.interp(np.median(values), np.asarray(curve.get_xdata())[::-1], np.asarray(curve.get_ydata())[::-1])
    assert shares == pytest.approx(0.5, abs=0.02)
    assert np.max(np.asarray(curve.get_ydata())) == pytest.approx(1)


def test_runs_without_online_requests_have_no_line() -> None:
    figure = draw_workload(RESULTS)
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == [*(name for name in RUNS if name != "offline-only"), "no-token-budget"]


def test_without_our_run_there_is_no_timeline_and_without_runs_no_plot(tmp_path: Path) -> None:
    assert len(draw_workload(replace(RESULTS, runs=RESULTS.runs[:1])).axes) == 2
    assert write_plots(replace(RESULTS, runs=(), frontier=RESULTS.frontier[2:3]), tmp_path) == []
    assert write_plots(replace(RESULTS, runs=(make_run("offline-only", 1.0),), frontier=()), tmp_path) == []


def test_the_frontier_has_a_line_for_each_engine_and_what_is_off_in_it() -> None:
    (axes,) = draw_frontier(RESULTS).axes
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert set(lines) == {"conserve", "conserve without token_budget", "stock", "TTFT objective"}
    assert lines["conserve"] == [200, 300], "in the order of the sizes"
    assert lines["stock"] == [900]
    assert {text.get_text() for text in axes.texts} >= {"128", "256"}


def test_runs_are_shown_in_their_order() -> None:
    names = ["no-b", "conserve", "no-a", "online-only"]
    assert sort_runs(names) == ["online-only", "conserve", "no-a", "no-b"]


def test_every_run_has_its_own_style() -> None:
    styles = choose_styles([*NAMES, "no-prefix-order"])
    assert len(set(styles.values())) == len(NAMES) + 1


def test_online_tokens_are_counted_when_they_come() -> None:
    run = replace(make_run("online-only", 1.0), online=(make_online(11.0, 1.0),))
    # The first token and the prompt at 11.21 s, the others at 12 and 12.2 s; in seconds since 10 s.
    rates = bin_online(run, np.array([0.0, 1.0, 2.0, 4.0]))
    assert rates.tolist() == [0, 31, 1]


def test_offline_prompts_are_spread_over_the_time_since_the_one_before() -> None:
    rates = bin_offline(make_run("conserve", 1.0), np.array([0.0, 1.0, 2.0, 38.0, 40.0, 42.0]))
    # 600 tokens in 2 s; the output token of each prompt comes at the even seconds; the last prompt ends at 50 s.
    np.testing.assert_allclose(rates, [301, 300, 300 + 18 / 36, 300.5, np.nan])


def test_a_run_whose_prompts_never_end_has_outputs_alone() -> None:
    run = replace(make_run("conserve", 1.0), offline=(OfflineRecord(1.0, (), 600, 1, None),))
    assert bin_offline(run, np.array([0.0, 10.0])).tolist() == [0]
