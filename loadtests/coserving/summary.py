"""From the raw results of a workload to its report: repeats pooled, ratios with their intervals.

Latencies are pooled over the repeats and then compared; their intervals are bootstrapped, whole requests resampled,
since the gaps of one answer hang together. Rates are tokens of all windows over the seconds of all windows; their
intervals are the lowest and the highest ratio repeat by repeat. Both sides of a ratio have the same repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Final

import numpy as np
from rich.console import Console

from conserve.engine.options import Objective
from conserve.engine.page import Counters
from loadtests.coserving.checkpoints import count_checkpoint_bytes, describe_checkpoints
from loadtests.coserving.plots import sort_runs, write_plots
from loadtests.coserving.results import (
    ALONE,
    ALONE_NO_SAFEPOINTS,
    CEILING,
    CONSERVE,
    FULL_PASSES,
    FULL_PASSES_NO_SAFEPOINTS,
    NO_CHECKPOINTS,
    NO_RESUME,
    NO_SAFEPOINTS,
    OFFLINE_ONLY,
    ONLINE_ONLY,
    RELAXED,
    STOCK_COSERVE,
    STOCK_TUNED,
    CalibrationPoint,
    OnlineRecord,
    RunResult,
    TokenRates,
    WorkloadResults,
    pool_rates,
)
from loadtests.coserving.slow_gaps import explain_gaps, find_iteration_wait_ms
from loadtests.coserving.stop_plots import write_stop_plots
from loadtests.coserving.stops import describe_stops, list_stopped
from loadtests.coserving.table import print_workload
from loadtests.latency import percentile_ratio, percentiles, pool
from loadtests.report import (
    CalibrationReport,
    Objectives,
    OnlineLoad,
    Ratio,
    Report,
    RunReport,
    SlowRequests,
    write_report,
)

SLOW_SHARE = 0.1

LatencyRatio = tuple[str, str, tuple[int, ...]]
"""To which run, its name in the ratio's, and of which percentiles."""
RateRatio = tuple[str, str, Callable[[RunResult], float]]
"""Name, to which run, and of what."""


def _offline_rate(result: RunResult) -> float:
    return result.offline_rates.total_per_s


_LATENCY_RATIOS: Final[tuple[LatencyRatio, ...]] = (
    (ONLINE_ONLY, "online_only", (50, 99)),
    (STOCK_COSERVE, "stock_coserve", (99,)),
    (STOCK_TUNED, "stock_tuned", (99,)),
    (NO_SAFEPOINTS, "no_safepoints", (50, 99)),
    (NO_RESUME, "no_resume", (99,)),
    (NO_CHECKPOINTS, "no_checkpoints", (99,)),
)
_RATE_RATIOS: Final[tuple[RateRatio, ...]] = (
    ("offline_vs_stock_tuned", STOCK_TUNED, _offline_rate),
    ("offline_vs_offline_only", OFFLINE_ONLY, _offline_rate),
    ("offline_percent_of_optimum", CEILING, _offline_rate),
    ("offline_vs_no_safepoints", NO_SAFEPOINTS, _offline_rate),
    ("offline_vs_no_resume", NO_RESUME, _offline_rate),
    ("offline_vs_no_checkpoints", NO_CHECKPOINTS, _offline_rate),
    ("total_vs_online_only", ONLINE_ONLY, lambda result: _total(result).total_per_s),
    ("prompt_vs_online_only", ONLINE_ONLY, lambda result: _total(result).prompt_per_s),
    ("output_vs_online_only", ONLINE_ONLY, lambda result: _total(result).output_per_s),
)


def write_workload_report(results: WorkloadResults, out: Path, console: Console | None = None) -> Report:
    """Writes `<workload>.json` and the plots into `out`, and prints the tables."""
    report = make_report(results)
    write_report(out / f"{results.workload}.json", report)
    write_plots(results, out)
    write_stop_plots(results, out)
    print_workload(console or Console(), report)
    return report


def make_report(results: WorkloadResults) -> Report:
    """Puts the report together from the runs that were made; a figure that is not known is left out."""
    made = {run: results.of(run) for run in sort_runs({result.run for result in results.runs})}
    objective = results.objective
    calibration = [
        *(_describe_point("stock-tuned", point) for point in results.tuning),
        *(_describe_point("ceiling", point) for point in results.ceiling_sizes),
        *(_describe_point("frontier", point) for point in results.frontier),
    ]
    runs = {run: describe_run(repeats, objective) for run, repeats in made.items()}
    notes = [*results.notes, *_question_ceiling(runs)]
    return Report(
        machine=results.machine,
        model=results.model,
        engine=results.engine,
        workload=results.workload,
        size=results.size,
        source=results.source,
        seed=results.seed,
        repeats=max((len(repeats) for repeats in made.values()), default=1),
        objectives=Objectives(ttft_ms=objective.ttft_slo_ms, tbt_ms=objective.tbt_slo_ms, tightness=results.tightness)
        if objective is not None
        else None,
        online_load=OnlineLoad(
            share=results.online_share,
            capacity_requests_per_s=results.capacity_per_s,
            requests_per_s=results.online_rate_per_s,
        ),
        calibration=calibration or None,
        notes=notes or None,
        runs=runs,
        ratios=compare_runs(results),
    )


def _question_ceiling(runs: Mapping[str, RunReport]) -> list[str]:
    ceiling = runs.get(CEILING, RunReport()).offline_tokens_per_s
    rates = {name: runs.get(name, RunReport()).offline_tokens_per_s for name in (STOCK_COSERVE, STOCK_TUNED)}
    above = [f"{name} {rate:,.0f}" for name, rate in rates.items() if rate and ceiling and rate > ceiling]
    if not above:
        return []
    return [
        f"ceiling does less offline work than stock ({ceiling:,.0f} tokens/s; {', '.join(above)}): "
        "percent of it is not percent of what can be done."
    ]


def describe_run(repeats: Sequence[RunResult], objective: Objective | None) -> RunReport:
    """Pools the repeats of one run (at least one)."""
    window_s = sum(result.window_s for result in repeats)
    figures: dict[str, object] = {
        "repeats": len(repeats),
        "knobs": repeats[0].knobs or None,
        "duration_s": window_s,
        "peak_memory_bytes": max(result.peak_memory_bytes for result in repeats),
        **_rates("total", pool_rates(repeats, _total)),
        **_describe_counters(repeats),
    }
    if any(result.online for result in repeats):
        figures |= _rates("online", pool_rates(repeats, lambda result: result.online_rates))
        figures |= _describe_online(repeats, objective)
    if any(result.offline for result in repeats):
        figures |= _rates("offline", pool_rates(repeats, lambda result: result.offline_rates))
        figures["offline_duration_s"] = window_s
        figures["offline_requests"] = finished = sum(result.offline_finished for result in repeats)
        figures["offline_requests_per_s"] = finished / window_s
        figures["offline_failed"] = sum(result.offline_failed for result in repeats)
    return RunReport.model_validate(figures)


def compare_runs(results: WorkloadResults) -> dict[str, Ratio]:
    """The ratios of `conserve` to the other runs, as far as both were made; those of other runs say so in front."""
    ratios = _compare_run(results, CONSERVE, _LATENCY_RATIOS, _RATE_RATIOS)
    for prefix, run, latency_ratios, rate_ratios in (
        ("relaxed", RELAXED, _LATENCY_RATIOS, _RATE_RATIOS),
        ("full_passes", FULL_PASSES, ((FULL_PASSES_NO_SAFEPOINTS, "no_safepoints", (50, 99)),), ()),
        ("alone", ALONE, (), (("offline_vs_no_safepoints", ALONE_NO_SAFEPOINTS, _offline_rate),)),
    ):
        of_run = _compare_run(results, run, latency_ratios, rate_ratios)
        ratios |= {f"{prefix}_{name}": ratio for name, ratio in of_run.items()}
    return ratios


def _compare_run(
    results: WorkloadResults,
    run_of_ours: str,
    latency_ratios: Sequence[LatencyRatio],
    rate_ratios: Sequence[RateRatio],
) -> dict[str, Ratio]:
    ratios: dict[str, Ratio] = {}
    for run, name, at in latency_ratios:
        ours, theirs = _pair(results, run_of_ours, run)
        for latency, groups_of in (("ttft", _ttft_groups), ("tbt", _tbt_groups)):
            for percentile in at:
                ratio = percentile_ratio(groups_of(ours), groups_of(theirs), percentile)
                if ratio is not None:
                    by_repeat = _compare_repeats(ours, theirs, groups_of, percentile)
                    ratios[f"{latency}_p{percentile}_vs_{name}"] = ratio.model_copy(
                        update={"interval": "bootstrap", **_describe_repeats(by_repeat)}
                    )
    for name, run, rate in rate_ratios:
        ratio = _compare_rates(*_pair(results, run_of_ours, run), rate, scale=100.0 if "percent" in name else 1.0)
        if ratio is not None:
            ratios[name] = ratio
    return ratios


def _pair(results: WorkloadResults, run_of_ours: str, run: str) -> tuple[list[RunResult], list[RunResult]]:
    """A run of ours and another one, in the repeats that both of them have."""
    ours, theirs = ({result.repeat: result for result in results.of(name)} for name in (run_of_ours, run))
    common = sorted(ours.keys() & theirs.keys())
    return [ours[repeat] for repeat in common], [theirs[repeat] for repeat in common]


def _compare_rates(
    ours: Sequence[RunResult], theirs: Sequence[RunResult], rate: Callable[[RunResult], float], scale: float
) -> Ratio | None:
    if not theirs or any(rate(result) <= 0 for result in theirs):
        return None
    by_repeat = [scale * rate(mine) / rate(other) for mine, other in zip(ours, theirs, strict=True)]
    above, below = (
        sum(rate(result) * result.window_s for result in side) / sum(result.window_s for result in side)
        for side in (ours, theirs)
    )
    value = scale * above / below
    if len(by_repeat) < 2:
        return Ratio(median=value)
    low, high = min(by_repeat), max(by_repeat)
    return Ratio(median=value, min=low, max=high, interval="repeats", **_describe_repeats(by_repeat))


def _compare_repeats(
    ours: Iterable[RunResult],
    theirs: Iterable[RunResult],
    groups_of: Callable[[Iterable[RunResult]], list[list[float]]],
    at: int,
) -> list[float]:
    pairs = [
        (percentiles(pool(groups_of([mine]))), percentiles(pool(groups_of([other]))))
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return [getattr(mine, f"p{at}") / getattr(other, f"p{at}") for mine, other in pairs if mine and other]


def _describe_repeats(ratios: Sequence[float]) -> dict[str, float]:
    if len(ratios) < 2:
        return {}
    return {"repeat_median": median(ratios), "repeat_min": min(ratios), "repeat_max": max(ratios)}


def _ttft_groups(repeats: Iterable[RunResult]) -> list[list[float]]:
    return [group for result in repeats for group in result.ttft_groups]


def _tbt_groups(repeats: Iterable[RunResult]) -> list[list[float]]:
    return [group for result in repeats for group in result.tbt_groups]


def _total(result: RunResult) -> TokenRates:
    online, offline = result.online_rates, result.offline_rates
    return TokenRates(online.prompt_per_s + offline.prompt_per_s, online.output_per_s + offline.output_per_s)


def _rates(kind: str, rates: TokenRates) -> dict[str, float]:
    return {
        f"{kind}_tokens_per_s": rates.total_per_s,
        f"{kind}_prompt_tokens_per_s": rates.prompt_per_s,
        f"{kind}_output_tokens_per_s": rates.output_per_s,
    }


def _describe_online(repeats: Sequence[RunResult], objective: Objective | None) -> dict[str, object]:
    measured = [record for result in repeats for record in result.measured_online]
    answered = [record for record in measured if record.error is None]
    gaps_ms = pool(_tbt_groups(repeats))
    figures: dict[str, object] = {
        "ttft_ms": percentiles(pool(_ttft_groups(repeats))),
        "tbt_ms": percentiles(gaps_ms),
        "send_lag_ms": percentiles([record.send_lag_ms for record in measured]),
        "online_requests": len(answered),
        "online_errors": len(measured) - len(answered),
        "slow_requests": _describe_slow(repeats),
    }
    if objective is None or not measured:
        return figures
    in_time = [_starts_in_time(record, objective) for record in measured]
    kept = [
        starts and all(gap <= objective.tbt_slo_ms for gap in record.tbt_ms)
        for starts, record in zip(in_time, measured, strict=True)
    ]
    figures |= {"slo_attainment": fmean(kept), "ttft_slo_attainment": fmean(in_time)}
    if gaps_ms:
        figures["tbt_slo_attainment"] = fmean(gap <= objective.tbt_slo_ms for gap in gaps_ms)
        figures["slow_gaps"] = explain_gaps(repeats, objective.tbt_slo_ms)
    return figures


def _starts_in_time(record: OnlineRecord, objective: Objective) -> bool:
    return record.error is None and record.ttft_ms is not None and record.ttft_ms <= objective.ttft_slo_ms


def _describe_slow(repeats: Sequence[RunResult]) -> SlowRequests | None:
    rows: list[tuple[float, int, int, float]] = []
    for result in repeats:
        due_s = np.array([record.intended_s for record in result.online])
        ended_s = np.array([record.ended_s for record in result.online])
        for record in result.measured_online:
            if record.error is None and record.ttft_ms is not None:
                unanswered = int(np.sum((due_s < record.intended_s) & (ended_s > record.intended_s)))
                wait_ms = find_iteration_wait_ms(result, record.intended_s)
                rows.append((record.ttft_ms, record.prompt_tokens, unanswered, wait_ms))
    if not rows:
        return None
    is_logged = any(result.iterations for result in repeats)
    slow = sorted(rows, reverse=True)[: math.ceil(SLOW_SHARE * len(rows))]
    (ttft_ms, prompt_tokens, before, wait_ms), (all_ttft_ms, all_prompt_tokens, all_before, all_wait_ms) = (
        [fmean(column) for column in zip(*some, strict=True)] for some in (slow, rows)
    )
    return SlowRequests(
        requests=len(slow),
        ttft_ms=ttft_ms,
        all_ttft_ms=all_ttft_ms,
        prompt_tokens=prompt_tokens,
        all_prompt_tokens=all_prompt_tokens,
        online_before=before,
        all_online_before=all_before,
        iteration_wait_ms=wait_ms if is_logged else None,
        all_iteration_wait_ms=all_wait_ms if is_logged else None,
    )


def _describe_counters(repeats: Sequence[RunResult]) -> dict[str, object]:
    """What the schedulers counted; a stock one knows no budget and no model, and does not count tokens."""
    counters = [result.counters for result in repeats]
    if any(each.iterations <= 0 for each in counters):
        return {}
    figures: dict[str, object] = {
        "iterations": _count(counters, "iterations"),
        "mixed_iterations": _count(counters, "mixed_iterations"),
        "offline_iterations": _count(counters, "offline_iterations"),
        "preemptions": _count(counters, "online_preemptions", "offline_preemptions"),
        "online_preemptions": _count(counters, "online_preemptions"),
        "offline_preemptions": _count(counters, "offline_preemptions"),
        "recomputed_tokens": _count(counters, "offline_recomputed_tokens", "online_recomputed_tokens"),
        "schedule_s": sum(each.schedule_s for each in counters),
    }
    if any(each.stops for each in counters):
        figures["wasted_tokens"] = sum(each.wasted_tokens for each in counters)
        figures["missing_arrivals"] = _count(counters, "missing_arrivals")
        figures["stops"] = describe_stops(repeats)
        figures["aborted_layers"] = sum(
            int(each.stop_layer - each.first_layer) for result in repeats for each in list_stopped(result)
        )
    if any(each.saved_blocks or each.restored_blocks for each in counters):
        figures["checkpoints"] = describe_checkpoints(repeats)
        figures["checkpoint_bytes"] = count_checkpoint_bytes(counters)
    if scheduled := _count(counters, "offline_prefill_tokens", "offline_decode_tokens"):
        figures["offline_scheduled_tokens"] = scheduled
    if all(result.objective is not None for result in repeats):
        figures["over_budget_iterations"] = _count(counters, "over_budget_iterations")
    if all(each.model_ready for each in counters):
        figures["latency_model_error"] = median(each.model_error_median for each in counters)
        figures["latency_model_error_p95"] = median(each.model_error_p95 for each in counters)
        figures["overhead_ms"] = median(each.overhead_ms for each in counters)
    return figures


def _count(counters: Iterable[Counters], *names: str) -> int:
    return round(sum(float(getattr(each, name)) for each in counters for name in names))


def _describe_point(grid: str, point: CalibrationPoint) -> CalibrationReport:
    return CalibrationReport.model_validate(
        {
            "grid": grid,
            "mode": point.mode,
            "knobs": point.knobs,
            "duration_s": point.window_s,
            "online_requests": point.online_requests,
            "ttft_p50_ms": point.ttft_p50_ms,
            "ttft_p99_ms": point.ttft_p99_ms,
            "tbt_p99_ms": point.tbt_p99_ms,
            "chosen": point.chosen,
            **_rates("offline", point.offline),
        }
    )
