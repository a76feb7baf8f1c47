"""The figures of a load test, in the shape of every report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from loadtests.chat_record import ChatRecord
from loadtests.front.entrances import GRPC, HTTP, EntranceRecords
from loadtests.front.timeline import Phase, measure_harvest
from loadtests.front.turns import ratio_of_rounds
from loadtests.latency import percentile_ratio, percentiles, pool, tbt_groups, ttft_groups
from loadtests.report import Ratio, Report, RunReport, describe_machine

ALONE: Final = "online-only"
BESIDE: Final = "conserve"
AT_ONCE: Final = "{}-at-once"
"""The run of an entrance's rounds."""


def make_report(
    phases: list[Phase],
    model: str,
    source: str,
    seed: int,
    entrances: Mapping[str, EntranceRecords] | None = None,
) -> Report:
    """The report of the phases `online-only` and `conserve`; a figure that is not known is left out.

    With `entrances` also the runs `http`, `grpc`, of chats one at a time, and `http-at-once`, `grpc-at-once`.
    """
    runs = {phase.name: describe_phase(phase) for phase in phases}
    by_name = {phase.name: phase.records.chats for phase in phases}
    ratios: dict[str, Ratio] = {}
    for name, groups_of in (("ttft", ttft_groups), ("tbt", tbt_groups)):
        for percentile in (50, 99):
            ratio = percentile_ratio(groups_of(by_name[BESIDE]), groups_of(by_name[ALONE]), percentile)
            if ratio is not None:
                ratios[f"{name}_p{percentile}_vs_online_only"] = ratio
    total, base = runs[BESIDE].total_tokens_per_s, runs[ALONE].total_tokens_per_s
    if total is not None and base:
        ratios["total_vs_online_only"] = Ratio(median=total / base)
    if entrances is not None:
        runs |= describe_entrances(entrances)
        ratios |= compare_entrances(entrances)
    replicas = max((len(reading.replicas) for phase in phases for reading in phase.readings), default=0)
    return Report(
        machine=describe_machine(),
        model=model,
        engine={"replicas": replicas} if replicas else {},
        workload="loadtest",
        source=source,
        seed=seed,
        runs=runs,
        ratios=ratios,
    )


def describe_phase(phase: Phase) -> RunReport:
    """What is known of one phase. Rates of tokens are over the seconds in which chats were due."""
    chats = phase.records.chats
    answered = [record for record in chats if record.error is None]
    prompt = sum(record.prompt_tokens or 0 for record in answered) / phase.duration_s
    output = sum(record.output_tokens or 0 for record in answered) / phase.duration_s
    harvest = measure_harvest(phase)
    known: dict[str, float | int | None] = {}
    if phase.records.batches:
        known["offline_requests"] = sum(batch.completed for batch in phase.records.batches)
        known["offline_failed"] = sum(batch.failed for batch in phase.records.batches)
    if harvest is not None:
        known["offline_duration_s"] = harvest.duration_s
        known["offline_tokens_per_s"] = harvest.tokens_per_s
        known["offline_prompt_tokens_per_s"] = harvest.prompt_tokens / harvest.duration_s
        known["offline_output_tokens_per_s"] = harvest.output_tokens / harvest.duration_s
        known["total_tokens_per_s"] = prompt + output + harvest.tokens_per_s
    elif not phase.records.batches:
        known["total_tokens_per_s"] = prompt + output
    return RunReport(
        duration_s=phase.duration_s,
        ttft_ms=percentiles(pool(ttft_groups(chats))),
        tbt_ms=percentiles(pool(tbt_groups(chats))),
        end_to_end_ms=percentiles(pool(end_to_end_groups(chats))),
        send_lag_ms=percentiles([record.send_lag_ms for record in chats]),
        online_requests=len(answered),
        online_errors=len(chats) - len(answered),
        online_tokens_per_s=prompt + output,
        online_prompt_tokens_per_s=prompt,
        online_output_tokens_per_s=output,
    ).model_copy(update=known)


def describe_entrances(entrances: Mapping[str, EntranceRecords]) -> dict[str, RunReport]:
    """What is known of each entrance: of the chats one at a time, and of the rounds of chats at once."""
    return {name: _describe_turns([[record] for record in found.single]) for name, found in entrances.items()} | {
        AT_ONCE.format(name): _describe_turns(found.rounds) for name, found in entrances.items()
    }


def compare_entrances(entrances: Mapping[str, EntranceRecords]) -> dict[str, Ratio]:
    """What gRPC has over HTTP, as ratios: of the chats one at a time, and of the output tokens/s of the rounds."""
    grpc, http = entrances[GRPC], entrances[HTTP]
    ratios: dict[str, Ratio] = {}
    for name, groups_of in (("ttft", ttft_groups), ("tbt", tbt_groups), ("end_to_end", end_to_end_groups)):
        ratio = percentile_ratio(groups_of(grpc.single), groups_of(http.single), 50)
        if ratio is not None:
            ratios[f"{name}_p50_grpc_vs_http"] = ratio
    if http.rounds:
        rates = [[_output_tokens(records) / _took_s(records) for records in found.rounds] for found in (grpc, http)]
        found = ratio_of_rounds(*rates)
        ratios["output_tokens_grpc_vs_http"] = Ratio(
            median=found.value, min=found.low, max=found.high, interval="repeats"
        )
    return ratios


def end_to_end_groups(records: Iterable[ChatRecord]) -> list[list[float]]:
    """Time from the intended send to the end of each answer in ms, failed ones left out."""
    return [[(record.ended_s - record.intended_s) * 1e3] for record in records if record.error is None]


def _describe_turns(turns: Sequence[Sequence[ChatRecord]]) -> RunReport:
    """Of answered chats. The rates are over the time of the turns."""
    records = [record for turn in turns for record in turn]
    duration_s = sum(_took_s(turn) for turn in turns)
    return RunReport(
        duration_s=duration_s,
        ttft_ms=percentiles(pool(ttft_groups(records))),
        tbt_ms=percentiles(pool(tbt_groups(records))),
        end_to_end_ms=percentiles(pool(end_to_end_groups(records))),
        online_requests=len(records),
        online_output_tokens_per_s=_output_tokens(records) / duration_s if turns else None,
    )


def _took_s(records: Sequence[ChatRecord]) -> float:
    return max(record.ended_s for record in records) - min(record.sent_s for record in records)


def _output_tokens(records: Sequence[ChatRecord]) -> int:
    return sum(record.output_tokens or len(record.content_s) for record in records)


def find_problems(phases: list[Phase]) -> list[str]:
    """What stands against calling it a success, as sentences."""
    problems = []
    for phase in phases:
        errors = [record.error for record in phase.records.chats if record.error is not None]
        if errors:
            count = len(phase.records.chats)
            problems.append(f"{phase.name}: {len(errors)} of {count} chats failed, the first with: {errors[0]}")
        if not phase.records.chats:
            problems.append(f"{phase.name}: no chat was sent")
        for batch in phase.records.batches:
            if batch.error is not None or batch.failed or batch.status in ("failed", "expired"):
                why = batch.error or f"{batch.failed} of {batch.total} requests failed"
                problems.append(f"{phase.name}: batch {batch.batch_id} ({batch.status}): {why}")
        if phase.name == BESIDE and measure_harvest(phase) is None:
            problems.append(f"{phase.name}: no offline work was seen")
    return problems
