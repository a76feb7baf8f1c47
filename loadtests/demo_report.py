"""The demonstration's numbers: from what was recorded to a report, and what stands against calling it a success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.batch_file import TokenCount
from loadtests.chat_load import ChatRecord
from loadtests.engine_status import EngineUse
from loadtests.latency import percentile_ratio, percentiles, pool, tbt_groups, ttft_groups
from loadtests.report import BatchReport, Ratio, Report, RunReport, describe_machine

ALONE = "online-only"
HARVESTING = "conserve"
SHOWN_REFUSALS = 3


@dataclass(frozen=True)
class ChatPhase:
    """The chats of one phase; `started_s` is on the clock of the records."""

    started_s: float
    records: Sequence[ChatRecord]
    use: EngineUse | None = None

    @property
    def answered(self) -> list[ChatRecord]:
        """The records without an error."""
        return [record for record in self.records if record.error is None]

    @property
    def duration_s(self) -> float | None:
        """From the start to the last answer; None if nothing was sent."""
        return max(record.ended_s for record in self.records) - self.started_s if self.records else None

    @property
    def tokens_per_s(self) -> float | None:
        """Prompt and output tokens a second; None if the server did not count them all."""
        counts = [(record.prompt_tokens, record.output_tokens) for record in self.answered]
        if not counts or self.duration_s is None:
            return None
        total = 0
        for prompt, output in counts:
            if prompt is None or output is None:
                return None
            total += prompt + output
        return total / self.duration_s


@dataclass(frozen=True)
class BatchPhase:
    """The batch, as it ended or as it was left; `duration_s` runs from its creation to its end.

    `refusals` say what its validation found wrong, if it failed for that.
    """

    report: BatchReport
    duration_s: float
    tokens: TokenCount | None
    refusals: Sequence[str] = ()


def make_report(alone: ChatPhase, harvesting: ChatPhase, batch: BatchPhase, model: str) -> Report:
    """Puts the report together; a figure that is not known is left out."""
    runs = {ALONE: _describe_chats(alone), HARVESTING: _describe_harvest(alone, harvesting, batch)}
    ratios: dict[str, Ratio] = {}
    for name, groups_of in (("ttft", ttft_groups), ("tbt", tbt_groups)):
        for percentile in (50, 99):
            ratio = percentile_ratio(groups_of(harvesting.records), groups_of(alone.records), percentile)
            if ratio is not None:
                ratios[f"{name}_p{percentile}_vs_online_only"] = ratio
    total, base = runs[HARVESTING].total_tokens_per_s, runs[ALONE].total_tokens_per_s
    if total is not None and base:
        ratios["total_vs_online_only"] = Ratio(median=total / base)
    engine = {"replicas": harvesting.use.replicas} if harvesting.use is not None else {}
    return Report(
        machine=describe_machine(),
        model=model,
        engine=engine,
        workload="demo",
        repeats=1,
        runs=runs,
        ratios=ratios,
        batch=batch.report,
    )


def find_problems(alone: ChatPhase, harvesting: ChatPhase, batch: BatchPhase) -> list[str]:
    """What kept the demonstration from being a success, as sentences."""
    problems = []
    report = batch.report
    if report.status != "completed":
        problems.append(
            f"the batch is {report.status}, not completed, after {batch.duration_s:.0f} s "
            f"({report.completed} of {report.total} requests done)"
        )
    if report.failed:
        where = f", see {report.error_file}" if report.error_file is not None else ""
        problems.append(f"{report.failed} of {report.total} requests of the batch failed{where}")
    problems += [f"the batch was refused: {refusal}" for refusal in batch.refusals[:SHOWN_REFUSALS]]
    for name, phase in (("alone", alone), ("while harvesting", harvesting)):
        errors = [record.error for record in phase.records if record.error is not None]
        if errors:
            problems.append(f"{len(errors)} of {len(phase.records)} chats {name} failed, the first with: {errors[0]}")
        if not phase.records:
            problems.append(f"no chat was sent {name}")
    return problems


def _describe_chats(phase: ChatPhase) -> RunReport:
    return RunReport(
        duration_s=phase.duration_s,
        ttft_ms=percentiles(pool(ttft_groups(phase.records))),
        tbt_ms=percentiles(pool(tbt_groups(phase.records))),
        send_lag_ms=percentiles([record.send_lag_ms for record in phase.records]),
        online_requests=len(phase.answered),
        online_errors=len(phase.records) - len(phase.answered),
        online_tokens_per_s=phase.tokens_per_s,
        total_tokens_per_s=phase.tokens_per_s,
        engine_cpu_s=phase.use.engine_cpu_s if phase.use else None,
        engine_cpu_duration_s=phase.use.duration_s if phase.use and phase.use.engine_cpu_s is not None else None,
    )


def _describe_harvest(alone: ChatPhase, harvesting: ChatPhase, batch: BatchPhase) -> RunReport:
    chats = _describe_chats(harvesting)
    tokens, use, duration_s = batch.tokens, harvesting.use, batch.duration_s
    figures: dict[str, float | int | None] = {
        "offline_requests": batch.report.completed,
        "offline_failed": batch.report.failed,
        "offline_duration_s": duration_s,
        "offline_requests_per_s": batch.report.completed / duration_s,
        "harvested_cpu_s": _harvested_cpu_s(alone.use, use),
        # Without the batch's token counts a total would be the online tokens alone.
        "total_tokens_per_s": None,
    }
    if tokens is not None:
        offline_tokens_per_s = (tokens.prompt + tokens.output) / duration_s
        figures["offline_tokens_per_s"] = offline_tokens_per_s
        figures["offline_prompt_tokens_per_s"] = tokens.prompt / duration_s
        figures["offline_output_tokens_per_s"] = tokens.output / duration_s
        if chats.online_tokens_per_s is not None:
            figures["total_tokens_per_s"] = chats.online_tokens_per_s + offline_tokens_per_s
    if use is not None and use.offline_busy_s is not None:
        figures["offline_busy_s"] = use.offline_busy_s
        figures["offline_busy_share"] = use.offline_busy_s / (duration_s * use.replicas)
    return chats.model_copy(update=figures)


def _harvested_cpu_s(alone: EngineUse | None, harvesting: EngineUse | None) -> float | None:
    if alone is None or harvesting is None or alone.engine_cpu_s is None or harvesting.engine_cpu_s is None:
        return None
    return harvesting.engine_cpu_s - alone.engine_cpu_s / alone.duration_s * harvesting.duration_s
