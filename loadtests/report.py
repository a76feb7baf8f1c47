"""The report files of demonstrations, benchmarks and load tests: one shape, so that one reader serves them all.

What a run does not have is absent from the file, never zero.
"""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from typing import Any

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
    """A ratio of pooled values (`median`) and, where it was resampled, its bootstrap interval (`min`, `max`)."""

    median: float
    min: float | None = None
    max: float | None = None


class RunReport(_Part):
    """One run (or the pooled repeats of one). Rates are over `duration_s` unless another denominator is named.

    Attributes:
        duration_s: From the first intended arrival to the last answer.
        send_lag_ms: How far the load generator itself was behind its arrivals (part of TTFT).
        offline_duration_s: From the creation of the batch to its end: the denominator of the offline rates.
        offline_requests: Requests answered; failed ones are in `offline_failed`.
        offline_tokens_per_s: Prompt and output tokens together.
        offline_busy_s: Seconds in which at least one offline request was in the engine, summed over replicas.
        offline_busy_share: The same as a share of `offline_duration_s` times the replicas.
        engine_cpu_s: CPU seconds of the engine's processes within `engine_cpu_duration_s`.
        harvested_cpu_s: CPU seconds beyond what the online load alone takes in the same time.
        slo_attainment: Share of online requests within their objectives.
        latency_model_error: Mean absolute percentage error, as a share.
    """

    duration_s: float | None = None
    ttft_ms: Percentiles | None = None
    tbt_ms: Percentiles | None = None
    send_lag_ms: Percentiles | None = None
    slo_attainment: float | None = None
    online_requests: int | None = None
    online_errors: int | None = None
    online_tokens_per_s: float | None = None
    offline_requests: int | None = None
    offline_failed: int | None = None
    offline_duration_s: float | None = None
    offline_requests_per_s: float | None = None
    offline_tokens_per_s: float | None = None
    offline_prompt_tokens_per_s: float | None = None
    offline_output_tokens_per_s: float | None = None
    total_tokens_per_s: float | None = None
    offline_busy_s: float | None = None
    offline_busy_share: float | None = None
    engine_cpu_s: float | None = None
    engine_cpu_duration_s: float | None = None
    harvested_cpu_s: float | None = None
    preemptions: int | None = None
    aborted_layers: int | None = None
    recomputed_tokens: int | None = None
    checkpoint_bytes: int | None = None
    latency_model_error: float | None = None
    peak_memory_bytes: int | None = None


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
    """A report file. `runs` and `ratios` hold only what was made."""

    machine: str
    model: str
    engine: dict[str, Any] = Field(default_factory=dict)
    workload: str
    repeats: int = Field(1, ge=1)
    runs: dict[str, RunReport]
    ratios: dict[str, Ratio] = Field(default_factory=dict)
    batch: BatchReport | None = None


def write_report(path: Path, report: Report) -> None:
    """Writes `report` so that a reader sees the whole of it or the file that was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(report.model_dump_json(indent=2, exclude_none=True) + "\n")
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
