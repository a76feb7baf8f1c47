"""How urgent a batch is: the time that is left less the time that its work takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from conserve.policy.admission import Capacity

FIRST_CONCERN: Final = 0.25
"""A batch begins to rise when its spare time is less than this part of the time that is left to it."""


class WorkLeft(NamedTuple):
    """What one batch has still to do: tokens, and its deadline in seconds since the epoch."""

    batch_id: str
    deadline_s: float
    tokens: float


class Outlook(NamedTuple):
    """What will become of a batch.

    Attributes:
        end_s: When it will be done, in the order in which batches go now; None if that is too far away to see.
        laxity_s: Its spare time if all is done in the order of deadlines; negative if it will be late, `-inf` if its
            end cannot be seen.
        urgency: See `find_urgency`.
    """

    end_s: float | None
    laxity_s: float
    urgency: float


def look_ahead(works: Sequence[WorkLeft], capacity: Capacity, now_s: float) -> dict[str, Outlook]:
    """The outlook of all batches, by id.

    Laxity goes by the order of deadlines, not by the one in which batches go: one that others go before for their
    priority is late only once it would be late in front of them, too.

    Args:
        works: In the order in which batches go now.
        capacity: What is to be expected.
        now_s: Now, in seconds since the epoch.
    """
    ends = _find_ends(works, capacity)
    by_deadline = _find_ends(sorted(works, key=lambda work: (work.deadline_s, work.batch_id)), capacity)
    outlooks = {}
    for work in works:
        end_s = by_deadline[work.batch_id]
        laxity_s = work.deadline_s - end_s if end_s is not None else -math.inf
        urgency = find_urgency(laxity_s, work.deadline_s - now_s) if work.tokens > 0 else 0.0
        outlooks[work.batch_id] = Outlook(ends[work.batch_id], laxity_s, urgency)
    return outlooks


def find_urgency(laxity_s: float, left_s: float) -> float:
    """From 0 (on track: it is treated as if it had no deadline) to 1 (late).

    It rises smoothly and early: with `FIRST_CONCERN` of the time left as spare time it begins, without any it is 1.

    Args:
        laxity_s: Spare time.
        left_s: Time to the deadline.
    """
    if left_s <= 0 or laxity_s <= 0:
        return 1.0
    return max(0.0, 1.0 - laxity_s / (FIRST_CONCERN * left_s))


def _find_ends(works: Iterable[WorkLeft], capacity: Capacity) -> dict[str, float | None]:
    ordered = list(works)
    until = accumulate(work.tokens for work in ordered)
    return {work.batch_id: capacity.when(tokens) for work, tokens in zip(ordered, until, strict=True)}
