"""What waits in the queue, by tenant, and what will be late."""

from __future__ import annotations

import math
from typing import Any

from conserve.harvest.messages import CapacityReport
from conserve.harvest.queue_metrics import QueueMetrics
from conserve.jobs.batch import ActiveBatch, BatchStatus, FlexKind
from conserve.policy.laxity import Outlook
from conserve.telemetry import job_metrics as metrics
from conserve.telemetry.bounded_label import OTHER
from conserve.telemetry.memory_recorder import MemoryRecorder

NOW_MS = 1_000_000_000


def make_batch(batch_id: str, **changes: Any) -> ActiveBatch:
    values: dict[str, Any] = {
        "batch_id": batch_id,
        "status": BatchStatus.IN_PROGRESS,
        "created_at_ms": NOW_MS - 60_000,
        "expires_at_ms": NOW_MS + 3_600_000,
        "cancelling_at_ms": None,
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "model": "m",
        "total": 10,
        "completed": 0,
        "failed": 0,
        "ready": 8,
        "leased": 2,
        "outcome": None,
    }
    return ActiveBatch(**(values | changes))


def report(*batches: ActiveBatch, outlooks: dict[str, Outlook] | None = None, tenants: int = 0) -> MemoryRecorder:
    recorder = MemoryRecorder()
    known = [f"t{number}" for number in range(tenants)]
    reports = [CapacityReport(replica_id="r1", model="m", state="serving", window=4)]
    QueueMetrics(recorder, known, ["m", "n"]).report(batches, outlooks or {}, reports, NOW_MS)
    return recorder


def test_an_empty_queue_is_said_to_be_empty() -> None:
    recorder = report()
    assert recorder.value(metrics.BATCHES, "in_progress") == 0
    assert recorder.value(metrics.FLEX_WAITING) == 0
    assert recorder.value(metrics.REPLICAS, "m") == 1
    assert recorder.value(metrics.REPLICAS, "n") == 0


def test_depth_and_age_of_each_tenant() -> None:
    recorder = report(
        make_batch("a", tenant="x", created_at_ms=NOW_MS - 5_000),
        make_batch("b", tenant="x", created_at_ms=NOW_MS - 90_000, ready=1),
        make_batch("c", tenant="y", ready=0, created_at_ms=NOW_MS - 900_000),
        make_batch("d", tenant="y", status=BatchStatus.VALIDATING),
        make_batch("e", tenant="z", paused=True),
    )
    assert recorder.value(metrics.QUEUE_REQUESTS, "x", "ready") == 9
    assert recorder.value(metrics.QUEUE_REQUESTS, "x", "leased") == 4
    assert recorder.value(metrics.QUEUE_AGE, "x") == 90
    assert recorder.value(metrics.QUEUE_AGE, "y") == 0  # All of it is leased.
    assert recorder.value(metrics.QUEUE_AGE, "z") == 0
    assert recorder.value(metrics.BATCHES, "in_progress") == 4
    assert recorder.value(metrics.BATCHES, "validating") == 1
    assert recorder.value(metrics.PAUSED_BATCHES) == 1


def test_lateness_is_that_of_the_latest_batch() -> None:
    ends_s = NOW_MS / 1000 + 3_600
    recorder = report(
        make_batch("a", tenant="x"),
        make_batch("b", tenant="x"),
        make_batch("c", tenant="y"),
        make_batch("d", tenant="z"),
        outlooks={
            "a": Outlook(ends_s + 30, -30.0, 1.0),
            "b": Outlook(ends_s + 10, -10.0, 1.0),
            "c": Outlook(ends_s - 10, 10.0, 0.0),
            "d": Outlook(None, -math.inf, 1.0),
        },
    )
    assert recorder.value(metrics.PREDICTED_LATENESS, "x") == 30
    assert recorder.value(metrics.LATE_BATCHES, "x") == 2
    assert recorder.value(metrics.PREDICTED_LATENESS, "y") == 0
    assert recorder.value(metrics.PREDICTED_LATENESS, "z") == math.inf


def test_flex_requests_wait_apart() -> None:
    recorder = report(
        make_batch("f", flex=FlexKind.WHOLE), make_batch("g", flex=FlexKind.WHOLE, outcome=BatchStatus.COMPLETED)
    )
    assert recorder.value(metrics.FLEX_WAITING) == 1
    assert recorder.value(metrics.BATCHES, "in_progress") == 0


def test_tenants_beyond_the_bound_are_counted_together() -> None:
    strangers = [make_batch(f"b{number}", tenant=f"new{number}", ready=1) for number in range(3)]
    recorder = report(*strangers, make_batch("k", tenant="t0"), tenants=metrics.MOST_TENANTS)
    assert recorder.value(metrics.QUEUE_REQUESTS, OTHER, "ready") == 3
    assert recorder.value(metrics.QUEUE_REQUESTS, "t0", "ready") == 8
