"""What the report and its tables say of KV blocks in host memory."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from conserve.engine.page import Counters
from loadtests.coserving.figures import list_figures
from loadtests.coserving.results import RunResult
from loadtests.coserving.summary import describe_run
from loadtests.coserving.table import print_workload
from loadtests.report import Ratio, Report

SLOTS = {"host_slots": 40.0, "host_block_bytes": 2e6, "host_block_tokens": 128.0}
RUN = RunResult(
    *("conserve", 1, "pressure", 7, "conserve", 10.0, 20.0, (), ()),
    Counters(iterations=1, saved_blocks=10, host_blocks=40, **SLOTS),
    Counters(
        iterations=5,
        offline_preemptions=4,
        offline_recomputed_tokens=600,
        saved_blocks=110,
        restored_blocks=60,
        restored_in_vain=5,
        dropped_blocks=3,
        uncovered_blocks=2,
        failed_copies=1,
        copied_blocks=150,
        copy_s=0.1,
        copy_wait_s=0.02,
        host_blocks=10,
        **SLOTS,
    ),
    5,
)


def test_copies_are_counted_over_the_windows() -> None:
    described = describe_run([RUN, replace(RUN, repeat=2)], None)
    assert described.checkpoint_bytes == 2 * 150 * 2_000_000
    report = described.checkpoints
    assert report is not None
    assert (report.saved_blocks, report.restored_blocks, report.restored_in_vain) == (200, 120, 10)
    assert (report.dropped_blocks, report.uncovered_blocks, report.failed_copies) == (6, 4, 2)
    assert report.copy_gb_per_s == pytest.approx(3.0)
    assert report.copy_share == pytest.approx(0.01)
    assert report.copy_wait_ms == pytest.approx(40)
    # As it is at the end, not what it grew by.
    assert report.host_share == pytest.approx(0.25)
    assert report.block_tokens == 128


def test_a_run_that_copied_nothing_says_nothing_of_it() -> None:
    described = describe_run([replace(RUN, counters_after=replace(RUN.counters_before, iterations=5))], None)
    assert (described.checkpoints, described.checkpoint_bytes) == (None, None)


def test_the_tables_compare_with_a_run_without_and_say_where_the_time_goes() -> None:
    ours = describe_run([RUN], None)
    without = ours.model_copy(update={"checkpoints": None, "recomputed_tokens": 9_000})
    report = Report(
        machine="a machine",
        model="smol",
        workload="pressure",
        runs={"conserve": ours, "no-checkpoints": without},
        ratios={"offline_vs_no_checkpoints": Ratio(median=1.2), "tbt_p99_vs_no_checkpoints": Ratio(median=1.01)},
    )
    verdicts = {figure.label: figure.verdict for figure in list_figures(report)}
    assert verdicts["Offline tok/s / no checkpoints"] == "missed"
    assert verdicts["P99 TBT / no checkpoints"] == "met"
    assert verdicts["P99 TTFT / no checkpoints"] == "not measured"
    # 150 tokens, where a block has 128.
    assert verdicts["Tokens recomputed a preemption"] == "missed"

    console = Console(file=io.StringIO(), width=120, record=True)
    print_workload(console, report)
    printed = console.export_text()
    assert "100 KV blocks saved, 60 restored" in printed
    assert "no-checkpoints: 4 offline requests preempted, 9,000 tokens" in printed


def test_without_that_run_there_are_no_such_figures() -> None:
    report = Report(
        machine="a machine", model="smol", workload="pressure", runs={"conserve": describe_run([RUN], None)}
    )
    assert not [figure for figure in list_figures(report) if "checkpoints" in figure.label]
