"""Where the time goes in what missed its figure: only what was counted or recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from loadtests.coserving.figures import Figure, Subject
from loadtests.coserving.results import CEILING, CONSERVE, ONLINE_ONLY, RELAXED, STOCK_COSERVE, STOCK_TUNED
from loadtests.report import Report, RunReport


def explain_losses(report: Report, figures: Iterable[Figure]) -> dict[Subject, list[str]]:
    """For each subject of which a figure was missed, sentences about the `conserve` run beside the others."""
    missed = [figure.subject for figure in figures if figure.verdict == "missed"]
    return {subject: _EXPLAIN[subject](report) for subject in dict.fromkeys(missed)}


def _explain_ttft(report: Report) -> list[str]:
    run = report.runs[CONSERVE]
    lines = [_compare_p99(report, "ttft_ms", "P99 TTFT")]
    if report.objectives is not None and run.ttft_slo_attainment is not None:
        lines.append(
            f"{_percent(run.ttft_slo_attainment)} of the requests had their first token within the objective of "
            f"{report.objectives.ttft_ms:,.0f} ms."
        )
    for name in (CONSERVE, ONLINE_ONLY):
        slow = report.runs[name].slow_requests if name in report.runs else None
        if slow is not None:
            lines.append(
                f"{name}: the slowest tenth ({slow.requests}) took {slow.ttft_ms:,.0f} ms on average (all: "
                f"{slow.all_ttft_ms:,.0f}), had prompts of {slow.prompt_tokens:,.0f} tokens (all: "
                f"{slow.all_prompt_tokens:,.0f}) and came while {slow.online_before:.1f} other online requests were "
                f"unanswered (all: {slow.all_online_before:.1f})."
            )
            if slow.iteration_wait_ms is not None and slow.all_iteration_wait_ms is not None:
                lines.append(
                    f"{name}: of that, {slow.iteration_wait_ms:,.0f} ms passed until the iteration ended that was "
                    f"running when they came (all: {slow.all_iteration_wait_ms:,.0f})."
                )
    if run.send_lag_ms is not None:
        lines.append(f"The client itself sent them late by {run.send_lag_ms.p99:,.1f} ms (p99), which is in TTFT.")
    return lines + _explain_preemptions(run)


def _explain_tbt(report: Report) -> list[str]:
    run = report.runs[CONSERVE]
    lines = [_compare_p99(report, "tbt_ms", "P99 TBT")]
    if report.objectives is not None and run.tbt_slo_attainment is not None:
        lines.append(
            f"{_percent(run.tbt_slo_attainment)} of the gaps were within the objective of "
            f"{report.objectives.tbt_ms:,.0f} ms."
        )
    if run.iterations and run.mixed_iterations is not None and run.over_budget_iterations is not None:
        mixed = run.mixed_iterations
        lines.append(
            f"{mixed:,} of {run.iterations:,} iterations ({_percent(mixed / run.iterations)}) had online and offline "
            f"requests; {run.over_budget_iterations:,} of these ({_share(run.over_budget_iterations, mixed)}) took "
            "longer than their objective allowed."
        )
    if run.slow_gaps is not None:
        slow = run.slow_gaps
        lines.append(
            f"Gaps above the objective: {slow.online_prompts:,} in an iteration with online prompts alone, "
            f"{slow.offline_work:,} in one with offline work, {slow.several_iterations:,} over several iterations, "
            f"{slow.outside:,} outside of the engine."
        )
    return lines + _explain_model(report) + _explain_scheduling(report) + _explain_preemptions(run)


def _explain_offline(report: Report) -> list[str]:
    run = report.runs[CONSERVE]
    rates = [
        f"{name} {each.offline_tokens_per_s:,.0f}"
        for name in (CONSERVE, RELAXED, CEILING, STOCK_TUNED)
        if (each := report.runs.get(name)) is not None and each.offline_tokens_per_s is not None
    ]
    online = [
        f"{name} {each.online_tokens_per_s:,.0f}"
        for name in (CONSERVE, RELAXED, CEILING, STOCK_TUNED)
        if (each := report.runs.get(name)) is not None and each.online_tokens_per_s is not None
    ]
    lines = [f"Offline tokens/s: {', '.join(rates)}. Online ones in the same windows: {', '.join(online)}."]
    for name in (CONSERVE, RELAXED, CEILING, STOCK_TUNED):
        each = report.runs.get(name)
        if each is not None:
            lines += _explain_iterations(name, each, run.overhead_ms)
    return lines + _explain_preemptions(run) + _explain_scheduling(report)


def _explain_iterations(name: str, run: RunReport, overhead_ms: float | None) -> list[str]:
    mixed, offline, duration_s = run.mixed_iterations, run.offline_iterations, run.duration_s
    scheduled = run.offline_scheduled_tokens
    if not run.iterations or mixed is None or offline is None or scheduled is None or not duration_s:
        return []
    alone = run.iterations - mixed - offline
    line = (
        f"{name}: {run.iterations / duration_s:.1f} iterations a second; {_share(mixed, run.iterations)} mixed, "
        f"{_share(offline, run.iterations)} offline only, {_share(alone, run.iterations)} without offline requests"
    )
    if mixed + offline:
        line += f"; {scheduled / (mixed + offline):,.1f} offline tokens in each of the former two on average"
    lines = [line + "."]
    if overhead_ms:
        lines.append(
            f"{name}: the smallest iteration takes {overhead_ms:,.0f} ms; as overhead of each that is "
            f"{_percent(overhead_ms / 1e3 * run.iterations / duration_s)} of the time."
        )
    if run.recomputed_tokens is not None:
        lines.append(
            f"{name}: {run.recomputed_tokens:,} computed tokens were lost to preemptions, "
            f"{_share(run.recomputed_tokens, scheduled)} of the {scheduled:,} offline tokens scheduled."
        )
    return lines


def _explain_model(report: Report) -> list[str]:
    return [
        f"{name}: the latency model errs by {_percent(run.latency_model_error)} (median) and "
        f"{_percent(run.latency_model_error_p95)} (p95) on iterations it has not seen."
        for name in (CONSERVE, CEILING)
        if (run := report.runs.get(name)) is not None
        and run.latency_model_error is not None
        and run.latency_model_error_p95 is not None
    ]


def _explain_scheduling(report: Report) -> list[str]:
    return [
        f"{name}: the scheduler took {1e3 * run.schedule_s / run.iterations:.2f} ms an iteration, "
        f"{_percent(run.schedule_s / run.duration_s)} of the time."
        for name in (CONSERVE, STOCK_COSERVE)
        if (run := report.runs.get(name)) is not None
        and run.schedule_s is not None
        and run.iterations
        and run.duration_s
    ]


def _explain_preemptions(run: RunReport) -> list[str]:
    if run.online_preemptions is None or run.offline_preemptions is None:
        return []
    return [f"Preempted: {run.offline_preemptions:,} offline and {run.online_preemptions:,} online requests."]


def _compare_p99(report: Report, field: str, label: str) -> str:
    values = [
        f"{name} {latency.p99:,.0f} ms"
        for name, run in report.runs.items()
        if (latency := getattr(run, field)) is not None
    ]
    return f"{label}: {', '.join(values)}."


def _share(part: float, whole: float) -> str:
    return _percent(part / whole) if whole else "none"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _explain_errors(report: Report) -> list[str]:
    counts = [f"{name} {run.online_errors:,}" for name, run in report.runs.items() if run.online_errors is not None]
    return [f"Online requests that failed or were given up: {', '.join(counts)}."]


def _explain_stops(report: Report) -> list[str]:
    return [
        f"{name}: {run.stops.stops:,} passes stopped, before layer {run.stops.layer:.1f} on average, "
        f"{run.stops.continued:,} continued; {run.wasted_tokens or 0:,.0f} tokens computed in vain"
        + (
            f"; from the signal to the stop {run.stops.signal_ms.p50:,.0f} ms (p50), {run.stops.signal_ms.p99:,.0f} ms "
            "(p99)"
            if run.stops.signal_ms is not None
            else ""
        )
        + (f", a layer takes {run.stops.layer_ms:,.1f} ms." if run.stops.layer_ms is not None else ".")
        for name, run in report.runs.items()
        if run.stops is not None
    ]


def _explain_checkpoints(report: Report) -> list[str]:
    lines = []
    for name, run in report.runs.items():
        if run.offline_preemptions and run.recomputed_tokens is not None:
            lines.append(
                f"{name}: {run.offline_preemptions:,} offline requests preempted, {run.recomputed_tokens:,} tokens of "
                f"theirs computed again, {_share(run.recomputed_tokens, run.offline_scheduled_tokens or 0)} of all."
            )
        if (found := run.checkpoints) is not None:
            rate = f" at {found.copy_gb_per_s:,.1f} GB/s" if found.copy_gb_per_s is not None else ""
            lines.append(
                f"{name}: {found.saved_blocks:,} KV blocks saved, {found.restored_blocks:,} restored "
                f"({found.restored_in_vain:,} in vain), copied{rate} in {_percent(found.copy_share)} of the time; "
                f"batches waited {found.copy_wait_ms:,.0f} ms for copies. Host memory full: {found.dropped_blocks:,} "
                f"blocks dropped, {found.uncovered_blocks:,} not covered. {found.failed_copies:,} copies failed."
            )
    return lines


_EXPLAIN: dict[Subject, Callable[[Report], list[str]]] = {
    "errors": _explain_errors,
    "ttft": _explain_ttft,
    "tbt": _explain_tbt,
    "offline": _explain_offline,
    "model": _explain_model,
    "stops": _explain_stops,
    "checkpoints": _explain_checkpoints,
}
