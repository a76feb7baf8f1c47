"""Which batch's work goes first."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class JobDemand(msgspec.Struct, frozen=True, gc=False):
    """Work that one batch still has to offer.

    Times are seconds since the epoch. `ready` counts requests that nobody has claimed. Of two batches the one of the
    higher `priority` goes first. `urgency` is 0 for one that is on track and rises to 1 for one that will be late
    (`policy.laxity`). One that was `promised` its completion window rises over the turns of all tenants, any other only
    within the part of its own. `request_tokens` is what one request takes on average, prompt and output; of two batches
    with the same `prefix` the prompts begin alike (empty: with nothing in common).
    """

    batch_id: str
    model: str
    created_at: float
    expires_at: float
    ready: int
    priority: int = 0
    tenant: str = "default"
    request_tokens: float = 1_024.0
    prefix: str = ""
    urgency: float = 0.0
    promised: bool = False


def order_jobs(jobs: Iterable[JobDemand]) -> list[JobDemand]:
    """Highest priority first, then the earliest end of the completion window, then the older batch.

    The id breaks ties, so the order is stable.
    """
    return sorted(jobs, key=lambda job: (-job.priority, job.expires_at, job.created_at, job.batch_id))


def list_late(jobs: Iterable[JobDemand]) -> list[JobDemand]:
    """Those that are not on track: the promised ones, then others; the most urgent first, then as in `order_jobs`."""
    late = order_jobs(job for job in jobs if job.urgency > 0)
    return sorted(late, key=lambda job: (not job.promised, -job.urgency))
