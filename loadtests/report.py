"""The report files of demonstrations, benchmarks and load tests: one shape, so that one reader serves them all.

What a run does not have is absent from the file, never zero.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ReportError(ValueError):
    """A file is no report; the message names the file and the field."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Percentiles(_Part):
    """Of a pooled sample, in the unit that the field's name carries."""

    p50: float
    p90: float
    p99: float


class Ratio(_Part):
    """A ratio of pooled values (`median`) and an interval of it (`min`, `max`), where there is one.

    Attributes:
        median: The ratio of the pooled values.
        min, max: Its interval.
        interval: Of what kind that is: `bootstrap` (95 %, requests resampled) or `repeats` (the lowest and the highest
            of the ratios repeat by repeat). Bootstrap where it is not said.
        repeat_median, repeat_min, repeat_max: Median, lowest and highest of the ratios repeat by repeat.
    """

    median: float
    min: float | None = None
    max: float | None = None
    interval: Literal["bootstrap", "repeats"] | None = None
    repeat_median: float | None = None
    repeat_min: float | None = None
    repeat_max: float | None = None


class SlowRequests(_Part):
    """The slowest tenth of the online requests by TTFT, beside all of them: means.

    Attributes:
        requests: How many they are.
        ttft_ms, all_ttft_ms: Mean TTFT.
        prompt_tokens, all_prompt_tokens: Mean length of their prompts.
        online_before, all_online_before: Mean number of other online requests still unanswered when one was due.
        iteration_wait_ms, all_iteration_wait_ms: Mean time that the iteration which was running then went on.
    """

    requests: int
    ttft_ms: float
    all_ttft_ms: float
    prompt_tokens: float
    all_prompt_tokens: float
    online_before: float
    all_online_before: float
    iteration_wait_ms: float | None = None
    all_iteration_wait_ms: float | None = None


class SlowGaps(_Part):
    """Gaps between tokens that were longer than the objective, by what happened in the engine meanwhile.

    Attributes:
        online_prompts: One iteration, with online prompts and no offline work.
        offline_work: One iteration, with offline work.
        several_iterations: More than one: the request was not in all of them.
        outside: No such iteration: the rest passed between the engine and the reader.
    """

    online_prompts: int
    offline_work: int
    several_iterations: int
    outside: int


class StopReport(_Part):
    """Passes of offline work that were stopped between two layers, as the log of iterations has them.

    Attributes:
        stops: How many.
        continued: Passes that went on at the layer where another one had stopped.
        layer: Mean layer before which they stopped.
        layer_ms: Median time of a layer in them.
        signal_ms: From the announcement of the request that a pass was stopped for to the stop.
        beyond_two_layers_ms: The same, less the time of two layers of that pass.
    """

    stops: int
    continued: int
    layer: float
    layer_ms: float | None = None
    signal_ms: Percentiles | None = None
    beyond_two_layers_ms: Percentiles | None = None


class CheckpointReport(_Part):
    """KV blocks of offline requests that were copied to host memory, and back.

    Attributes:
        saved_blocks, restored_blocks: Sent to host memory, and back; `restored_in_vain` of the latter were not used.
        dropped_blocks, uncovered_blocks: With host memory full: given up for others, and not copied at all.
        failed_copies: Blocks that could not be copied, and were computed again.
        copy_gb_per_s: Rate of the copies while they were made.
        copy_share: Part of the time in which copies were made.
        copy_wait_ms: How long batches waited for copies, all together.
        host_share: Part of host memory in use at the end; the most of any repeat.
        block_tokens: Tokens of a block: what a preempted request computes again at most if all of it was copied.
    """

    block_tokens: int
    saved_blocks: int
    restored_blocks: int
    restored_in_vain: int
    dropped_blocks: int
    uncovered_blocks: int
    failed_copies: int
    copy_gb_per_s: float | None = None
    copy_share: float
    copy_wait_ms: float
    host_share: float


class Objectives(_Part):
    """Latency objectives of the online requests; `tightness` times the P99 of `online-only` where they were so made."""

    ttft_ms: float
    tbt_ms: float
    tightness: float | None = None


class OnlineLoad(_Part):
    """How much online load there was: `share` of `capacity_requests_per_s` is `requests_per_s`, all on average."""

    share: float
    capacity_requests_per_s: float
    requests_per_s: float


class CalibrationReport(_Part):
    """One setting of a grid, tried in short runs on a seed of their own.

    Attributes:
        grid: What it was tried for: `stock-tuned`, `ceiling` or `frontier`.
        mode: The engine, `stock` or `conserve`.
        knobs: The setting; what it does not name is as the engine was started.
        chosen: Whether the runs use it.
    """

    grid: Literal["stock-tuned", "ceiling", "frontier"]
    mode: str
    knobs: dict[str, float]
    duration_s: float
    online_requests: int
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    tbt_p99_ms: float | None = None
    offline_tokens_per_s: float
    offline_prompt_tokens_per_s: float
    offline_output_tokens_per_s: float
    chosen: bool = False


class RunReport(_Part):
    """One run (or the pooled repeats of one). Rates are over `duration_s` unless another denominator is named.

    Attributes:
        repeats: How many repeats are pooled; one where it is not said.
        knobs: Settings changed for this run alone.
        duration_s: From the first intended arrival to the last answer; in a benchmark the measured windows, summed.
        end_to_end_ms: From the intended send to the end of the answer.
        send_lag_ms: How far the load generator itself was behind its arrivals (part of TTFT).
        offline_duration_s: From the creation of the batch to its end: the denominator of the offline rates.
        offline_requests: Requests answered; failed ones are in `offline_failed`.
        offline_tokens_per_s: Prompt and output tokens together.
        offline_busy_s: Seconds in which at least one offline request was in the engine, summed over replicas.
        offline_busy_share: The same as a share of `offline_duration_s` times the replicas.
        engine_cpu_s: CPU seconds of the engine's processes within `engine_cpu_duration_s`.
        harvested_cpu_s: CPU seconds beyond what the online load alone takes in the same time.
        slo_attainment: Share of online requests within their objectives, the first token and every later one; failed
            ones are not.
        ttft_slo_attainment: Share of online requests whose first token came in time; failed ones are not.
        tbt_slo_attainment: Share of the gaps between tokens within their objective, of answered requests.
        preemptions: Of requests, online and offline.
        recomputed_tokens: Computed tokens that preempted requests lost and did not get back from the prefix cache or
            from host memory.
        checkpoint_bytes: Of KV blocks, copied to host memory and back.
        iterations: Iterations of the engine with at least one token, in `duration_s`; `mixed_iterations` had online and
            offline requests, `offline_iterations` offline ones only.
        over_budget_iterations: Mixed iterations that took longer than their objective allowed.
        offline_scheduled_tokens: Offline tokens given to iterations, recomputed ones included.
        schedule_s: Seconds spent in the scheduler.
        overhead_ms: Predicted time of the smallest iteration, at the end.
        latency_model_error, latency_model_error_p95: Median and 95th percentile of the relative error of predicted
            iteration times, of iterations not seen before, as shares. The median over the repeats.
        peak_memory_bytes: The most of any repeat, of the engine's processes since they were started.
        wasted_tokens: Tokens computed in vain by stopped passes; a part of the layers counts for its share.
        missing_arrivals: Announced online requests that were waited for and did not come in time.
        slow_requests: What is known of the slowest tenth.
        slow_gaps: What is known of the gaps above the objective.
        stops: What is known of stopped passes.
        checkpoints: What is known of KV blocks in host memory.
    """

    repeats: int | None = None
    knobs: dict[str, float] | None = None
    duration_s: float | None = None
    ttft_ms: Percentiles | None = None
    tbt_ms: Percentiles | None = None
    end_to_end_ms: Percentiles | None = None
    send_lag_ms: Percentiles | None = None
    slo_attainment: float | None = None
    ttft_slo_attainment: float | None = None
    tbt_slo_attainment: float | None = None
    online_requests: int | None = None
    online_errors: int | None = None
    online_tokens_per_s: float | None = None
    online_prompt_tokens_per_s: float | None = None
    online_output_tokens_per_s: float | None = None
    offline_requests: int | None = None
    offline_failed: int | None = None
    offline_duration_s: float | None = None
    offline_requests_per_s: float | None = None
    offline_tokens_per_s: float | None = None
    offline_prompt_tokens_per_s: float | None = None
    offline_output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None
    total_prompt_tokens_per_s: float | None = None
    total_output_tokens_per_s: float | None = None
    offline_busy_s: float | None = None
    offline_busy_share: float | None = None
    engine_cpu_s: float | None = None
    engine_cpu_duration_s: float | None = None
    harvested_cpu_s: float | None = None
    preemptions: int | None = None
    online_preemptions: int | None = None
    offline_preemptions: int | None = None
    aborted_layers: int | None = None
    recomputed_tokens: int | None = None
    checkpoint_bytes: int | None = None
    iterations: int | None = None
    mixed_iterations: int | None = None
    offline_iterations: int | None = None
    over_budget_iterations: int | None = None
    offline_scheduled_tokens: int | None = None
    schedule_s: float | None = None
    overhead_ms: float | None = None
    latency_model_error: float | None = None
    latency_model_error_p95: float | None = None
    peak_memory_bytes: int | None = None
    wasted_tokens: float | None = None
    missing_arrivals: int | None = None
    slow_requests: SlowRequests | None = None
    slow_gaps: SlowGaps | None = None
    stops: StopReport | None = None
    checkpoints: CheckpointReport | None = None


class BatchReport(_Part):
    """How the batch ended. Files are paths relative to the folder of the report."""

    status: str
    total: int
    completed: int
    failed: int
    duration_s: float | None = None
    output_file: str | None = None
    error_file: str | None = None


class Report(_Part):
    """A report file. `runs` and `ratios` hold only what was made.

    Attributes:
        engine: Arguments that the engines were started with.
        size: Of the workload: `cpu` or `gpu`.
        source: Where arrivals and lengths come from: a trace's file name, or `generated`.
        seed: Of the first repeat.
        calibration: The settings that were tried before the runs.
        notes: What a reader must know, as sentences.
    """

    machine: str
    model: str
    engine: dict[str, Any] = Field(default_factory=dict)
    workload: str
    size: str | None = None
    source: str | None = None
    seed: int | None = None
    repeats: int = Field(1, ge=1)
    objectives: Objectives | None = None
    online_load: OnlineLoad | None = None
    calibration: list[CalibrationReport] | None = None
    notes: list[str] | None = None
    runs: dict[str, RunReport]
    ratios: dict[str, Ratio] = Field(default_factory=dict)
    batch: BatchReport | None = None


def write_report(path: Path, report: Report) -> None:
    """Writes `report` so that a reader sees the whole of it or the file that was there before."""
    write_whole(path, report.model_dump_json(indent=2, exclude_none=True) + "\n")


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, as `write_whole` does."""
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the whole of it or the file that was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def read_report(path: Path) -> Report:
    """Reads a report file.

    Raises:
        ReportError: it is no report.
        OSError: it cannot be read.
    """
    try:
        return Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "file"
        raise ReportError(f"{path}: {where}: {problem['msg']}") from error


def describe_machine() -> str:
    """Architecture, cores this process may use, and memory: `Linux x86_64, 2 cores, 24 GiB`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{platform.system()} {platform.machine()}, {cores} cores, {memory_gib:.0f} GiB"
