"""What the page is sent: everything that it shows, and nothing of other tenants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel

from conserve.config import Settings
from conserve.harvest.messages import CapacityReport, LatencyNow
from conserve.harvest.replica_text import describe
from conserve.jobs.batch import Batch, BatchError, BatchList, RequestCounts
from conserve.policy.replica_capacity import ReplicaState

MOST_REPLICAS: Final = 48
"""Shown one by one; the totals are of all."""
MOST_BATCHES: Final = 30
"""Shown live, the newest; the page reads older ones from `/v1/batches`."""
MOST_ERRORS: Final = 10


class Objectives(BaseModel):
    """What a class of online requests is promised, milliseconds."""

    ttft_slo_ms: float
    tbt_slo_ms: float


class Hello(BaseModel):
    """The first event of a stream: what does not change."""

    tenant: str
    model: str
    endpoints: list[str]
    objectives: dict[str, Objectives]
    max_window_s: int
    period_s: float

    @classmethod
    def of(cls, settings: Settings, tenant: str, endpoints: Sequence[str], period_s: float) -> Hello:
        """What a page of a tenant is told at first."""
        classes = settings.slo.by_priority()
        objectives = {
            name: Objectives(ttft_slo_ms=one.ttft_slo_ms, tbt_slo_ms=one.tbt_slo_ms) for name, one in classes.items()
        }
        return cls(
            tenant=tenant,
            model=settings.model.served_name,
            endpoints=list(endpoints),
            objectives=objectives,
            max_window_s=settings.jobs.max_window_s,
            period_s=period_s,
        )


class ReplicaFrame(BaseModel):
    """A replica, as in its `CapacityReport`. That has ids of batches, which are not everybody's."""

    replica_id: str
    at_ms: int
    state: ReplicaState
    doing: str
    window: int
    alone: bool
    online_running: int
    online_waiting: int
    offline_running: int
    kv_usage: float
    kv_tokens: int
    kv_free_tokens: int
    kv_offline_tokens: int
    checkpoint_tokens: int
    checkpoint_free_tokens: int
    online_rate_per_s: float | None
    headroom_tokens_per_s: float | None
    slo_attainment: float | None
    latency: dict[str, LatencyNow]
    stops: int | None
    resumed_passes: int | None
    offline_preemptions: int | None
    restored_tokens: int | None
    offline_computed_tokens: int | None

    @classmethod
    def of(cls, report: CapacityReport) -> ReplicaFrame:
        """What of a report is shown."""
        names = cls.model_fields.keys() - {"doing"}
        # All pages are told the same, so batches that are stopped are not even counted.
        doing = describe(report.model_copy(update={"stopped": ()}))
        return cls(doing=doing, **{name: getattr(report, name) for name in names})


class Totals(BaseModel):
    """Of all replicas, also those that are not shown."""

    replicas: int
    serving: int
    online_running: int
    online_waiting: int
    offline_running: int
    window: int


class ReplicasFrame(BaseModel):
    """The replicas that report. `has_controller`: somebody allots windows."""

    replicas: list[ReplicaFrame]
    totals: Totals
    has_controller: bool

    @classmethod
    def of(cls, reports: Sequence[CapacityReport], *, has_controller: bool) -> ReplicasFrame:
        """Those first that serve."""
        ordered = sorted(reports, key=lambda one: (one.state != "serving", one.replica_id))
        totals = Totals(
            replicas=len(reports),
            serving=sum(one.state == "serving" for one in reports),
            online_running=sum(one.online_running for one in reports),
            online_waiting=sum(one.online_waiting for one in reports),
            offline_running=sum(one.offline_running for one in reports),
            window=sum(one.window for one in reports),
        )
        shown = [ReplicaFrame.of(one) for one in ordered[:MOST_REPLICAS]]
        return cls(replicas=shown, totals=totals, has_controller=has_controller)


class BatchFrame(BaseModel):
    """A batch, as in the Batch object, without what may be long."""

    id: str
    endpoint: str
    status: str
    completion_window: str
    created_at: int
    expires_at: int | None
    predicted_end_at: int | None
    paused_at: int | None
    request_counts: RequestCounts
    output_file_id: str | None
    error_file_id: str | None
    priority: int
    admission: str | None
    delayed_because: str | None
    errors: list[BatchError]
    more_errors: int

    @classmethod
    def of(cls, batch: Batch) -> BatchFrame:
        """What of a batch is shown."""
        names = cls.model_fields.keys() - {"errors", "more_errors"}
        errors = batch.errors.data if batch.errors is not None else []
        fields = {name: getattr(batch, name) for name in names}
        return cls(**fields, errors=errors[:MOST_ERRORS], more_errors=max(0, len(errors) - MOST_ERRORS))


class BatchesFrame(BaseModel):
    """The newest batches of one tenant."""

    batches: list[BatchFrame]
    has_more: bool

    @classmethod
    def of(cls, page: BatchList) -> BatchesFrame:
        """What of a page of batches is shown."""
        return cls(batches=[BatchFrame.of(one) for one in page.data], has_more=page.has_more)
