"""Which runs a workload takes, in which order, with which settings, and how long all of it is planned to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from conserve.engine.options import Objective
from conserve.engine.page import Knobs
from loadtests.coserving import calibration, results, timing
from loadtests.coserving.calibration import TuningTimes, find_chosen, list_batch_sizes, list_stock_sizes
from loadtests.coserving.driver import RunError
from loadtests.coserving.results import ABLATION_PREFIX, RunResult, WorkloadResults
from loadtests.coserving.timing import PassTimes
from loadtests.coserving.workloads import Workload
from loadtests.latency import percentiles, pool

ABLATIONS: Final = {
    "token-budget": Knobs(token_budget_off=1),
    "prefix-order": Knobs(prefix_order_off=1),
    "safepoints": Knobs(safepoints_off=1),
    "resume": Knobs(resume_off=1),
    "checkpoints": Knobs(checkpoints_off=1),
}
_NAMED: Final = {f"{ABLATION_PREFIX}{name}" for name in ABLATIONS}
_FULL: Final = {
    results.FULL_PASSES: Knobs(full_passes=1),
    results.FULL_PASSES_NO_SAFEPOINTS: Knobs(full_passes=1, safepoints_off=1),
}
_ALONE: Final = {
    results.ALONE: Knobs(full_passes=1),
    results.ALONE_NO_SAFEPOINTS: Knobs(full_passes=1, safepoints_off=1),
}
RELAXED_SHARE: Final = 0.9
"""Objectives of `conserve-relaxed`, as a share of the P99 of `stock-tuned`."""


@dataclass(frozen=True)
class BenchOptions:
    """What to run; see `loadtests.coserve.main` and `WorkloadResults`.

    Attributes:
        pass_limit_s: Engines, calibration and one repeat of the six runs take no longer; windows are cut to fit.
    """

    machine: str
    model: str
    repeats: int = 1
    tightness: float = 1.25
    duration_s: float | None = None
    pass_limit_s: float | None = None
    ablations: tuple[str, ...] = ()
    relaxed: bool = False
    frontier: bool = False
    seed: int = 1


def list_runs(workload: Workload, options: BenchOptions) -> tuple[str, ...]:
    """The runs of one repeat, in the order of the first one."""
    relaxed = (results.RELAXED,) if options.relaxed else ()
    ablations = [f"{ABLATION_PREFIX}{name}" for name in options.ablations]
    return tuple(dict.fromkeys((*results.RUNS, *relaxed, *ablations, *workload.further_runs)))


def order_runs(runs: Sequence[str], repeat: int) -> list[str]:
    """The runs of a repeat (from 1): each repeat begins two runs later, so that drift hits all alike.

    The first one begins with `online-only`, whose latencies are the objectives of all repeats.
    """
    first = 2 * (repeat - 1) % len(runs)
    return [*runs[first:], *runs[:first]]


def plan_times(workload: Workload, options: BenchOptions) -> PassTimes:
    """How many runs of which kind a workload takes."""
    sizes = len(list_batch_sizes(workload.engine))
    return PassTimes(
        fill_s=workload.fill_s,
        lead_s=workload.lead_s,
        stock_settings=len(list_stock_sizes(workload.engine)),
        ceiling_sizes=sizes,
        frontier_points=3 * sizes if options.frontier else 0,
        runs=list_runs(workload, options),
        repeats=options.repeats,
    )


def estimate_s(workload: Workload, options: BenchOptions) -> float:
    """Seconds that a workload takes at most, before anything about it is known."""
    times = plan_times(workload, options)
    before_s = 2 * timing.START_S + times.calibration_s(TuningTimes(8.0, 24.0), calibration.FINALISTS)
    return before_s + times.runs_s(options.duration_s or max(timing.SHORTEST_S, longest_s(times, options, before_s)))


def longest_s(times: PassTimes, options: BenchOptions, passed_s: float) -> float:
    """The longest window there is time for when `passed_s` of the time are gone."""
    if options.pass_limit_s is None:
        return timing.LONGEST_S
    return replace(times, runs=results.RUNS).longest_s(options.pass_limit_s - passed_s)


@dataclass(frozen=True)
class RunSettings:
    """The engine of a run, what is changed on it, and the objective it is told to keep."""

    mode: str
    knobs: Knobs
    objective: Objective | None = None


def choose_settings(run: str, so_far: WorkloadResults) -> RunSettings:
    """The settings of a run.

    Raises:
        ValueError: it needs something that has not been measured yet.
    """
    if run in (results.ONLINE_ONLY, results.OFFLINE_ONLY, results.STOCK_COSERVE):
        return RunSettings("stock", Knobs())
    if run == results.STOCK_TUNED:
        return RunSettings("stock", Knobs(**find_chosen(so_far.tuning).knobs))
    if run == results.CEILING:
        size = find_chosen(so_far.ceiling_sizes).knobs["max_num_batched_tokens"]
        return RunSettings("conserve", calibration.make_ceiling_knobs(int(size)))
    if run in _ALONE:
        return RunSettings("conserve", _ALONE[run])
    if run == results.RELAXED:
        objective = relax_objective(so_far)
        return RunSettings("conserve", _tell(Knobs(), objective), objective)
    base = _FULL[run] if run in _FULL else ABLATIONS[run.removeprefix(ABLATION_PREFIX)] if run in _NAMED else Knobs()
    return RunSettings("conserve", with_objective(base, so_far), so_far.objective)


def with_objective(knobs: Knobs, so_far: WorkloadResults) -> Knobs:
    """The knobs, with the objective of the workload.

    Raises:
        ValueError: `online-only` has not been measured yet.
    """
    objective = so_far.objective
    if objective is None:
        raise ValueError(f"{results.ONLINE_ONLY} comes before the runs that need its objectives")
    return _tell(knobs, objective)


def _tell(knobs: Knobs, objective: Objective) -> Knobs:
    return replace(knobs, ttft_slo_ms=objective.ttft_slo_ms, tbt_slo_ms=objective.tbt_slo_ms)


def relax_objective(so_far: WorkloadResults) -> Objective:
    """The objectives of `conserve-relaxed`: nine tenths of the P99 of the first `stock-tuned`.

    Offline rates are to be compared where both latencies are better, but near: the usual objectives may be so far from
    what the stock engine keeps at its best offline rate that the rates say little about each other.

    Raises:
        ValueError: `stock-tuned` has not been measured yet.
        RunError: `stock-tuned` has no answers, or none of more than one token.
    """
    tuned = so_far.of(results.STOCK_TUNED)
    if not tuned:
        raise ValueError(f"{results.STOCK_TUNED} comes before {results.RELAXED}")
    return find_objective(tuned[0], RELAXED_SHARE)


def find_objective(run: RunResult, tightness: float) -> Objective:
    """The objectives: `tightness` times the P99 of a run (`online-only`).

    Raises:
        RunError: it has no answers, or none of more than one token.
    """
    ttft, tbt = (percentiles(pool(groups)) for groups in (run.ttft_groups, run.tbt_groups))
    if ttft is None or tbt is None:
        raise RunError(f"{run.run} has no answers of two tokens in {run.window_s:g} s: run longer")
    return Objective(ttft_slo_ms=tightness * ttft.p99, tbt_slo_ms=tightness * tbt.p99)
