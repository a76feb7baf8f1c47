"""Batches of a tenant whose prompts begin alike, one after the other, so that what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from conserve.policy.ordering import JobDemand

TOLERANCE: Final = 0.1
"""A batch is passed over by no other whose window ends later than its own by more than this part of its window."""


def keep_prefixes_together(jobs: Sequence[JobDemand]) -> list[JobDemand]:
    """Moves batches up behind the first one of the same priority and prefix.

    The first of a group keeps its place, so that which group goes first is as it was. A batch whose prompts have
    nothing in common with others (`prefix` empty) stays where it is.

    Args:
        jobs: Of one tenant, in the order of `order_jobs`.
    """
    groups: list[list[JobDemand]] = []
    open_groups: dict[tuple[int, str], list[JobDemand]] = {}
    for job in jobs:
        group = open_groups.get((job.priority, job.prefix)) if job.prefix else None
        if group is not None and job.expires_at - group[0].expires_at <= _tolerance_s(group[0]):
            group.append(job)
            continue
        group = [job]
        groups.append(group)
        if job.prefix:
            open_groups[job.priority, job.prefix] = group
    return [job for group in groups for job in group]


def _tolerance_s(first: JobDemand) -> float:
    return TOLERANCE * max(0.0, first.expires_at - first.created_at)
