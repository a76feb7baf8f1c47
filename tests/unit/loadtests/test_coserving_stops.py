"""What the log of iterations says of stopped passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conserve.engine.iteration_log import Iteration
from conserve.engine.page import Counters
from loadtests.coserving.results import RunResult, WorkloadResults
from loadtests.coserving.stop_plots import draw_stops, write_stop_plots
from loadtests.coserving.stops import describe_stops
from loadtests.coserving.summary import describe_run


def make_iteration(start_s: float, end_s: float, **fields: float) -> Iteration:
    return Iteration(start_s, end_s, 0, 0, 512, 400.0, 0.0, **fields)


RUN = RunResult(
    *("conserve", 1, "interrupt", 7, "conserve", 10.0, 20.0, (), ()),
    Counters(iterations=1, stops=1, wasted_tokens=5),
    Counters(iterations=5, stops=3, wasted_tokens=25, missing_arrivals=1),
    5,
    iterations=(
        # Before the window, and after it.
        make_iteration(9.0, 9.5, stop_layer=3, announced_s=9.4, stopped_s=9.5),
        make_iteration(19.9, 20.5, stop_layer=3, announced_s=20.1, stopped_s=20.5),
        # 20 ms a layer, 30 ms after the signal; 10 ms a layer, 50 ms after it.
        make_iteration(11.0, 11.2, stop_layer=10, announced_s=500.0, stopped_s=500.03),
        make_iteration(12.0, 12.1, stop_layer=20, first_layer=10, announced_s=600.0, stopped_s=600.05),
        # Stopped for those who decode; came to its end.
        make_iteration(13.0, 13.1, stop_layer=5),
        make_iteration(14.0, 14.1, first_layer=5),
    ),
)


def test_stops_are_described_by_the_log() -> None:
    report = describe_stops([RUN])
    assert report is not None
    assert (report.stops, report.continued, report.layer) == (3, 2, pytest.approx(35 / 3))
    assert report.layer_ms == pytest.approx(20)
    assert report.signal_ms is not None
    assert report.signal_ms.p50 == pytest.approx(40)
    assert report.beyond_two_layers_ms is not None
    # 30 - 2 * 20 and 50 - 2 * 10 ms.
    assert report.beyond_two_layers_ms.p50 == pytest.approx(10)
    assert report.beyond_two_layers_ms.p99 == pytest.approx(30, abs=1)


def test_a_run_without_stops_has_none() -> None:
    assert describe_stops([replace(RUN, iterations=RUN.iterations[-1:])]) is None


def test_the_report_has_what_was_counted() -> None:
    report = describe_run([RUN], None)
    assert (report.wasted_tokens, report.missing_arrivals) == (20, 1)
    assert report.aborted_layers == 10 + 10 + 5
    assert report.stops == describe_stops([RUN])


def test_the_plot_has_a_line_for_each_run_with_stops(tmp_path: Path) -> None:
    results = WorkloadResults(
        *("interrupt", "cpu", "a machine", "smol", {"max_num_seqs": 16}, "generated", 7, 1, 1.25, 4.0, 0.3, 1.2, 10.0),
        runs=(RUN, replace(RUN, run="no-resume"), replace(RUN, run="ceiling", iterations=())),
    )
    layers, signals = draw_stops(results).axes
    assert [line.get_label() for line in layers.lines] == ["conserve (3 stops)", "no-resume (3 stops)"]
    assert next(line.get_label() for line in signals.lines) == "conserve (2 with a signal)"
    written = write_stop_plots(results, tmp_path)
    assert {path.name for path in written} == {"interrupt-stops.png", "interrupt-stops.svg"}
    assert all(path.stat().st_size > 1_000 for path in written)
    assert write_stop_plots(replace(results, runs=results.runs[2:]), tmp_path) == []
