"""Whether a batch can meet its completion window on the capacity that was seen, with what was promised to others.

Work is done in the order of its deadlines, so a set of promises can be kept if for each deadline the work that is due
by then fits into the capacity until then (Jackson's rule; Horn 1974 for one machine).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import accumulate
from typing import NamedTuple, Protocol


class Capacity(Protocol):
    """What can be promised, as `policy.forecast.PromisedCapacity`."""

    def until(self, at_s: float) -> float:
        """Tokens until a time."""

    def when(self, tokens: float) -> float | None:
        """The earliest time until which there are so many; None if it is too far away."""


class Promise(NamedTuple):
    """Work that is to be done by a time: tokens, seconds since the epoch."""

    deadline_s: float
    tokens: float


class Decision(NamedTuple):
    """Whether work can be promised by its deadline, and the earliest one by which it can; None: too far away."""

    fits: bool
    earliest_s: float | None


def decide(promises: Collection[Promise], own: Promise, capacity: Capacity, now_s: float) -> Decision:
    """Whether more work can be promised.

    Args:
        promises: What was promised before, as much of it as is left to do.
        own: The new work.
        capacity: What can be promised.
        now_s: Now, in seconds since the epoch.
    """
    earliest_s = find_earliest_deadline(promises, own.tokens, capacity, now_s)
    if earliest_s is not None and earliest_s <= own.deadline_s:
        return Decision(True, earliest_s)
    return Decision(False, earliest_s)


def find_earliest_deadline(
    promises: Iterable[Promise], tokens: float, capacity: Capacity, now_s: float
) -> float | None:
    """The earliest deadline at which more work fits, and breaks no promise that can be kept without it.

    A promise that cannot be kept in any case stands in nobody's way after its deadline.

    Args:
        promises: What was promised before, as much of it as is left to do.
        tokens: The new work.
        capacity: What can be promised.
        now_s: Now.

    Returns:
        Seconds since the epoch; None if it is too far away.
    """
    ordered = sorted(promises)
    work = [0.0, *accumulate(promise.tokens for promise in ordered)]
    slack = [capacity.until(promise.deadline_s) - due for promise, due in zip(ordered, work[1:], strict=True)]
    # The least slack of this promise and all later ones.
    least = list(accumulate(reversed(slack), min))[::-1]
    starts = [now_s, *(promise.deadline_s for promise in ordered)]
    for index, start_s in enumerate(starts):
        if index < len(least) and least[index] < tokens:
            continue
        at_s = capacity.when(tokens + work[index])
        if at_s is None:
            return None
        at_s = max(start_s, at_s)
        if index + 1 >= len(starts) or at_s < starts[index + 1]:
            return at_s
    return None
