"""Which batch's work goes first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class JobDemand:
    """Work that one batch still has to offer.

    Times are seconds since the epoch. `ready` counts requests that nobody has claimed.
    """

    batch_id: str
    model: str
    created_at: float
    expires_at: float
    ready: int


def order_jobs(jobs: Iterable[JobDemand]) -> list[JobDemand]:
    """Earliest end of the completion window first, then the older batch; the id breaks ties, so the order is stable."""
    return sorted(jobs, key=lambda job: (job.expires_at, job.created_at, job.batch_id))
