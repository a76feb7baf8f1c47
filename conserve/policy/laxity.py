"""How urgent a batch is: the time that is left less the time that its work takes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from conserve.policy.admission import Capacity
from conserve.policy.shared_service import SharedService

FIRST_CONCERN: Final = 0.25
"""A batch begins to rise when its spare time is less than this part of the time that is left to it."""
LAST_CONCERN: Final = 0.1
"""One that cannot make it any more has sunk when even alone it would take longer by this part of the time left..."""
LAST_CONCERN_S: Final = 60.0
"""... or by so much, if that is longer: shortly before its deadline each request more or less is a large part."""
LEAST_URGENCY: Final = 0.01
"""Of a batch that cannot make it any more: one place of a hundred and fewer."""


class WorkLeft(NamedTuple):
    """What one batch has still to do: tokens, and its deadline in seconds since the epoch.

    One that was `promised` its deadline rises over the turns of all tenants, any other only within those of its own.
    """

    batch_id: str
    deadline_s: float
    tokens: float
    tenant: str = "default"
    promised: bool = False


class Outlook(NamedTuple):
    """What will become of a batch.

    Attributes:
        end_s: When it will be done, in the order in which batches go now; None if that is too far away to see.
        laxity_s: Its spare time if all is done in the order of deadlines; negative if it will be late, `-inf` if its
            end cannot be seen.
        urgency: See `find_urgency` and `find_lost_urgency`.
    """

    end_s: float | None
    laxity_s: float
    urgency: float


def look_ahead(
    works: Sequence[WorkLeft],
    capacity: Capacity,
    now_s: float,
    weights: Mapping[str, float] = MappingProxyType({}),
    first: Collection[str] = (),
) -> dict[str, Outlook]:
    """The outlook of all batches, by id.

    Laxity goes by the order of deadlines, not by the one in which batches go: one that others go before for their
    priority is late only once it would be late in front of them, too. What cannot make its deadline even alone comes
    behind the others there, and has the least urgency as long as one of those is urgent: it does not make them late.

    Of several tenants, a batch that was promised its deadline is seen behind the others that were promised theirs and
    behind its own tenant's, since it can rise over all else; any other batch at its tenant's share of the capacity.

    Args:
        works: In the order in which batches go now.
        capacity: What is to be expected.
        now_s: Now, in seconds since the epoch.
        weights: Of tenants, which share the capacity; 1 where it is not said.
        first: Ids of those that go before the turns of all tenants now.
    """
    ends = _find_ends(works, capacity, weights, frozenset(first))
    alone = _find_ends_alone(works, capacity, weights)
    lost = {work.batch_id for work in works if work.tokens > 0 and not _is_by(alone[work.batch_id], work.deadline_s)}
    by_deadline = sorted(works, key=lambda work: (work.batch_id in lost, work.deadline_s, work.batch_id))
    best = _find_best_ends(by_deadline, capacity, weights)
    laxities = {work.batch_id: _subtract(work.deadline_s, best[work.batch_id]) for work in works}
    urgencies = {
        work.batch_id: find_urgency(laxities[work.batch_id], work.deadline_s - now_s)
        for work in works
        if work.tokens > 0 and work.batch_id not in lost
    }
    is_contended = any(urgency > 0 for urgency in urgencies.values())
    for work in works:
        if work.batch_id in lost:
            late_s = -_subtract(work.deadline_s, alone[work.batch_id])
            sinking = find_lost_urgency(late_s, work.deadline_s - now_s)
            urgencies[work.batch_id] = LEAST_URGENCY if is_contended else sinking
    return {
        work.batch_id: Outlook(ends[work.batch_id], laxities[work.batch_id], urgencies.get(work.batch_id, 0.0))
        for work in works
    }


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


def find_lost_urgency(late_s: float, left_s: float) -> float:
    """Of a batch that will be late even if it gets everything from now on, where no other one is urgent.

    It falls from 1 to `LEAST_URGENCY` as that grows to `LAST_CONCERN` of the time left, or to `LAST_CONCERN_S`:
    predictions are not exact, and one that may just make it is not dropped.

    Args:
        late_s: By how much it will be late, at least.
        left_s: Time to the deadline.
    """
    if left_s <= 0:
        return LEAST_URGENCY
    return max(LEAST_URGENCY, 1.0 - late_s / max(LAST_CONCERN * left_s, LAST_CONCERN_S))


def _subtract(deadline_s: float, end_s: float | None) -> float:
    return deadline_s - end_s if end_s is not None else -math.inf


def _is_by(end_s: float | None, deadline_s: float) -> bool:
    return end_s is not None and end_s <= deadline_s


def _find_ends(
    works: Sequence[WorkLeft], capacity: Capacity, weights: Mapping[str, float], first: Collection[str] = ()
) -> dict[str, float | None]:
    """Ends in this order: those of `first` one after the other, then each tenant's in turn with the others'."""
    ends = {}
    before = 0.0
    for work in works:
        if work.batch_id in first:
            before += work.tokens
            ends[work.batch_id] = capacity.when(before)
    rest = [work for work in works if work.batch_id not in first]
    service = SharedService(_add_up(rest), weights)
    own: dict[str, float] = defaultdict(float)
    for work in rest:
        own[work.tenant] += work.tokens
        ends[work.batch_id] = capacity.when(before + service.find_total(work.tenant, own[work.tenant]))
    return ends


def _find_ends_alone(
    works: Sequence[WorkLeft], capacity: Capacity, weights: Mapping[str, float]
) -> dict[str, float | None]:
    """Ends of batches for which everything is done that can be: with all of the capacity, or all of their tenant's."""
    service = SharedService(_add_up(works), weights)
    return {
        work.batch_id: capacity.when(work.tokens if work.promised else service.find_total(work.tenant, work.tokens))
        for work in works
    }


def _find_best_ends(
    works: Sequence[WorkLeft], capacity: Capacity, weights: Mapping[str, float]
) -> dict[str, float | None]:
    """Ends in this order, as far as batches can rise."""
    service = SharedService(_add_up(works), weights)
    promised = 0.0
    own: dict[str, float] = defaultdict(float)
    unpromised: dict[str, float] = defaultdict(float)
    ends = {}
    for work in works:
        own[work.tenant] += work.tokens
        if work.promised:
            promised += work.tokens
            total = promised + unpromised[work.tenant]
        else:
            unpromised[work.tenant] += work.tokens
            total = service.find_total(work.tenant, own[work.tenant])
        ends[work.batch_id] = capacity.when(total)
    return ends


def _add_up(works: Iterable[WorkLeft]) -> dict[str, float]:
    left: dict[str, float] = defaultdict(float)
    for work in works:
        left[work.tenant] += work.tokens
    return left
