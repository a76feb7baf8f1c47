"""What `/conserve/v1/status` says: replicas as they report themselves, and batches that have not ended."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Literal

from pydantic import BaseModel

from conserve.config import DEFAULT_TENANT
from conserve.harvest.messages import CapacityReport
from conserve.harvest.replica_text import describe
from conserve.jobs.batch import ActiveBatch


class BatchLine(BaseModel):
    """A batch that has not ended. Counts are requests; times are Unix seconds."""

    id: str
    status: str
    model: str | None
    total: int
    completed: int
    failed: int
    ready: int
    leased: int
    created_at: int
    expires_at: int
    priority: int = 0
    paused: bool = False

    @classmethod
    def of(cls, batch: ActiveBatch) -> BatchLine:
        """The line that describes a batch."""
        return cls(
            id=batch.batch_id,
            status=batch.status.value,
            model=batch.model,
            total=batch.total,
            completed=batch.completed,
            failed=batch.failed,
            ready=batch.ready,
            leased=batch.leased,
            created_at=batch.created_at_ms // 1000,
            expires_at=batch.expires_at_ms // 1000,
            priority=batch.priority,
            paused=batch.paused,
        )


class ReplicaStatus(CapacityReport):
    """What a replica says of itself, and in words what it is doing; of batches that are stopped, the caller's alone."""

    doing: str

    @classmethod
    def of(cls, report: CapacityReport, batch_ids: Container[str]) -> ReplicaStatus:
        """The status of the replica that has made the report, for who may see these batches."""
        seen = tuple(batch_id for batch_id in report.stopped if batch_id in batch_ids)
        shown = report.model_copy(update={"stopped": seen})
        return cls(**dict(shown), doing=describe(shown))


class Status(BaseModel):
    """The whole answer. Batches, and `flex_waiting`, requests that wait for harvested capacity, are the caller's.

    An admin's are those of all tenants.

    `controller` is the cluster whose controller is at work (null: none is). With `controller_elsewhere` that is another
    one, whose deployment has the same namespace by mistake, and the controller of this one waits.
    """

    object: Literal["conserve.status"] = "conserve.status"
    replicas: list[ReplicaStatus]
    batches: list[BatchLine]
    flex_waiting: int = 0
    controller: str | None = None
    controller_elsewhere: bool = False


def build_status(
    reports: Sequence[CapacityReport],
    batches: Sequence[ActiveBatch],
    tenant: str | None = DEFAULT_TENANT,
    *,
    controller: str | None = None,
    cluster: str | None = None,
) -> Status:
    """Puts the answer together, with the batches of one tenant (None: of all), as seen from a cluster."""
    own = [batch for batch in batches if tenant in (None, batch.tenant)]
    own_ids = {batch.batch_id for batch in own}
    waiting = sum(batch.flex is not None and batch.outcome is None for batch in own)
    return Status(
        replicas=[ReplicaStatus.of(report, own_ids) for report in reports],
        batches=[BatchLine.of(batch) for batch in own if batch.flex is None],
        flex_waiting=waiting,
        controller=controller,
        controller_elsewhere=None not in (controller, cluster) and controller != cluster,
    )
