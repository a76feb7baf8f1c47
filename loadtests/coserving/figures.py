"""The figures that the benchmark is held to: what must be reached, what would be good, and what was measured."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from loadtests.coserving.results import CEILING, CONSERVE, NO_CHECKPOINTS, ONLINE_ONLY, RELAXED
from loadtests.report import Ratio, Report, RunReport

Subject = Literal["errors", "ttft", "tbt", "offline", "model", "stops", "checkpoints"]
Verdict = Literal["goal met", "met", "missed", "not measured"]


@dataclass(frozen=True)
class Bound:
    """A limit on a figure, with the words it is stated in: `<= 1.3`."""

    text: str
    value: float

    def holds(self, measured: float) -> bool:
        """Whether `measured` is on the right side."""
        return _COMPARISONS[self.text.split()[0]](measured, self.value)


_COMPARISONS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}


@dataclass(frozen=True)
class Figure:
    """One figure of a workload.

    Attributes:
        label: What it is.
        subject: What it depends on: where to look if it is missed.
        must, goal: Its limits.
        measured: None if the runs it needs were not made.
    """

    label: str
    subject: Subject
    must: Bound
    goal: Bound | None
    measured: Ratio | None

    @property
    def verdict(self) -> Verdict:
        """Of the measured value alone, whatever its interval."""
        if self.measured is None:
            return "not measured"
        if not self.must.holds(self.measured.median):
            return "missed"
        return "goal met" if self.goal is not None and self.goal.holds(self.measured.median) else "met"

    @property
    def unsure(self) -> bool:
        """Whether the interval holds values on both sides of `must`."""
        measured = self.measured
        if measured is None or measured.min is None or measured.max is None:
            return False
        return self.must.holds(measured.min) != self.must.holds(measured.max)


def list_figures(report: Report) -> list[Figure]:
    """The figures stated for the workload of a report."""
    return list(_list_figures(report))


def _list_figures(report: Report) -> Iterator[Figure]:
    def ratio(label: str, subject: Subject, must: Bound, goal: Bound | None, name: str) -> Figure:
        return Figure(label, subject, must, goal, report.ratios.get(name))

    near, third = Bound("<= 1.05", 1.05), Bound("<= 1/3", 1 / 3)
    if report.workload in ("chat", "bursty"):
        yield ratio("P99 TBT / online-only", "tbt", Bound("<= 1.3", 1.3), near, "tbt_p99_vs_online_only")
        yield ratio("P99 TTFT / online-only", "ttft", Bound("<= 1.3", 1.3), near, "ttft_p99_vs_online_only")
    if report.workload == "pressure":
        must, goal = Bound("<= 1/20", 1 / 20), Bound("<= 1/84", 1 / 84)
        yield ratio("P99 TTFT / stock-coserve", "ttft", must, goal, "ttft_p99_vs_stock_coserve")
    yield ratio("P99 TTFT / stock-tuned", "ttft", Bound("< 1", 1), third, "ttft_p99_vs_stock_tuned")
    yield ratio("P99 TBT / stock-tuned", "tbt", Bound("< 1", 1), third, "tbt_p99_vs_stock_tuned")
    yield ratio("Offline tok/s / stock-tuned", "offline", Bound(">= 1", 1), None, "offline_vs_stock_tuned")
    if RELAXED in report.runs:
        yield ratio(
            "Relaxed: P99 TTFT / stock-tuned", "ttft", Bound("< 1", 1), third, "relaxed_ttft_p99_vs_stock_tuned"
        )
        yield ratio("Relaxed: P99 TBT / stock-tuned", "tbt", Bound("< 1", 1), third, "relaxed_tbt_p99_vs_stock_tuned")
        label, name = "Relaxed: offline tok/s / stock-tuned", "relaxed_offline_vs_stock_tuned"
        yield ratio(label, "offline", Bound(">= 1", 1), None, name)
    if report.workload == "chat":
        must, goal = Bound(">= 75 %", 75), Bound(">= 90 %", 90)
        yield ratio("Offline tok/s, % of ceiling", "offline", must, goal, "offline_percent_of_optimum")
        if report.online_load is not None and abs(report.online_load.share - 0.3) < 0.005:
            for label, kind in (("All tok/s", "total"), ("  prompt", "prompt"), ("  output", "output")):
                must, goal_of_kind = Bound(">= 2.35", 2.35), _ceiling_of(report, kind)
                yield ratio(f"{label} / online-only", "offline", must, goal_of_kind, f"{kind}_vs_online_only")
    if report.workload == "interrupt":
        yield from _list_interrupt_figures(ratio)
    run = report.runs.get(CONSERVE, RunReport())
    if report.workload in ("chat", "interrupt"):
        must = Bound("<= 1 %", 1) if report.workload == "chat" else Bound("<= 2 %", 2)
        yield Figure("Tokens computed in vain, %", "stops", must, Bound("<= 0.1 %", 0.1), _find_waste(run))
    if report.workload == "interrupt":
        beyond = run.stops.beyond_two_layers_ms if run.stops is not None else None
        measured = Ratio(median=beyond.p99) if beyond is not None else None
        yield Figure("Signal to stop, less 2 layers, p99, ms", "stops", Bound("<= 5", 5), None, measured)
    if NO_CHECKPOINTS in report.runs:
        yield from _list_checkpoint_figures(ratio, report, run)
    errors = Ratio(median=run.online_errors) if run.online_errors is not None else None
    yield Figure("Online errors", "errors", Bound("<= 0", 0), None, errors)
    for label, must, goal, error in (
        ("median", Bound("<= 8 %", 8), Bound("<= 4 %", 4), run.latency_model_error),
        ("p95", Bound("<= 25 %", 25), Bound("<= 10 %", 10), run.latency_model_error_p95),
    ):
        measured = Ratio(median=100 * error) if error is not None else None
        yield Figure(f"Latency model error, {label}, %", "model", must, goal, measured)


def _list_interrupt_figures(ratio: Callable[..., Figure]) -> Iterator[Figure]:
    third, half = Bound("<= 1/3", 1 / 3), Bound("<= 1/2", 1 / 2)
    name = "full_passes_ttft_p99_vs_no_safepoints"
    yield ratio("P99 TTFT, full passes / no safepoints", "ttft", third, Bound("<= 1/5", 1 / 5), name)
    yield ratio("P99 TTFT / no safepoints", "ttft", Bound("< 1", 1), half, "ttft_p99_vs_no_safepoints")
    must, goal = Bound(">= 0.9", 0.9), Bound(">= 0.98", 0.98)
    yield ratio("Offline tok/s / no safepoints", "offline", must, goal, "offline_vs_no_safepoints")
    must = Bound(">= 0.99", 0.99)
    yield ratio("Alone: offline tok/s / no safepoints", "offline", must, None, "alone_offline_vs_no_safepoints")


def _list_checkpoint_figures(ratio: Callable[..., Figure], report: Report, run: RunReport) -> Iterator[Figure]:
    if report.workload == "pressure":
        must, goal = Bound(">= 1.25", 1.25), Bound(">= 3", 3)
        yield ratio("Offline tok/s / no checkpoints", "checkpoints", must, goal, "offline_vs_no_checkpoints")
    must, goal = Bound("<= 1.03", 1.03), Bound("<= 1", 1)
    yield ratio("P99 TTFT / no checkpoints", "ttft", must, goal, "ttft_p99_vs_no_checkpoints")
    yield ratio("P99 TBT / no checkpoints", "tbt", must, goal, "tbt_p99_vs_no_checkpoints")
    if run.checkpoints is not None and run.offline_preemptions and run.recomputed_tokens is not None:
        must = Bound(f"<= {run.checkpoints.block_tokens}", run.checkpoints.block_tokens)
        measured = Ratio(median=run.recomputed_tokens / run.offline_preemptions)
        yield Figure("Tokens recomputed a preemption", "checkpoints", must, Bound("<= 0", 0), measured)


def _find_waste(run: RunReport) -> Ratio | None:
    """Percent of the offline tokens computed; nothing is wasted where nothing was stopped."""
    if not run.offline_scheduled_tokens:
        return None
    return Ratio(median=100 * (run.wasted_tokens or 0.0) / run.offline_scheduled_tokens)


def _ceiling_of(report: Report, kind: str) -> Bound | None:
    """What `ceiling` reaches of the same figure."""
    field = "total_tokens_per_s" if kind == "total" else f"total_{kind}_tokens_per_s"
    above, below = (getattr(report.runs.get(run), field, None) for run in (CEILING, ONLINE_ONLY))
    if above is None or not below:
        return None
    return Bound(f">= {above / below:.2f}", above / below)
