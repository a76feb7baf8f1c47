"""From the capacity reports of all replicas to what each of them may harvest.

How much may be in flight on a replica is its window (`window`). Tenants share the places of all replicas
(`fair_shares`), and batches are placed so that few of them move (`placement`).

Batches that are not on track go before the others, each up to a part of the window that is as large as its urgency:
those that were promised their completion windows before the turns of all tenants, others within their tenant's part. A
floor, if the operator grants one, is open to them even where the window is shut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from conserve.policy.fair_shares import FairShares
from conserve.policy.ordering import JobDemand
from conserve.policy.placement import Homes, Room, place
from conserve.policy.replica_capacity import ReplicaCapacity
from conserve.policy.window import WindowRule, window_of, window_tokens_of

LOOKAHEAD: Final = 4
"""A replica is offered so many windows of requests: what may be done until it hears anew, and some that others take."""
UNNOTICED: Final = 0.25
"""A replica's turns stay as they are while no batch is to have more or fewer requests by more than this part."""


class JobShare(NamedTuple):
    """The most requests of a batch that are taken in one turn."""

    batch_id: str
    most: int


class Allotment(msgspec.Struct, frozen=True):
    """What a replica may harvest.

    Attributes:
        window: So many offline requests in flight.
        jobs: They are taken in these turns; see `turns.ShareTurns`.
        late: Before that from these, each up to so many requests in flight here, in this order.
        floor: So many requests of `late` may be in flight even where the window is smaller.
        floor_share: Share of the engine's time that offline requests get beside online ones, whatever those leave.
        window_tokens: So many tokens, prompt and output, they may come to; None: any number.
        request_tokens: What a request takes, on average, by batch; only with `window_tokens`.
    """

    window: int
    jobs: tuple[JobShare, ...] = ()
    late: tuple[JobShare, ...] = ()
    floor: int = 0
    floor_share: float = 0.0
    window_tokens: int | None = None
    request_tokens: Mapping[str, float] = msgspec.field(default_factory=dict)

    def without_late(self, batch_id: str) -> Allotment:
        """The same without a late batch."""
        return replace(self, late=tuple(share for share in self.late if share.batch_id != batch_id))


def pass_over_stopped(jobs: Iterable[JobDemand], capacities: Iterable[ReplicaCapacity]) -> list[JobDemand]:
    """The same batches; those that all replicas of their model have stopped have nothing to take.

    Else the turns of a tenant whose requests fail and so use nothing would come to be all of them.
    """
    stopped: dict[str, frozenset[str]] = {}
    for one in capacities:
        known = stopped.get(one.model)
        if known is None:
            stopped[one.model] = one.stopped
        elif known:  # Mostly nobody has stopped any.
            stopped[one.model] = known & one.stopped
    if not any(stopped.values()):
        return [*jobs]
    return [replace(job, ready=0) if job.batch_id in stopped.get(job.model, ()) else job for job in jobs]


def floor_share_of(capacity: ReplicaCapacity, rule: WindowRule, late: Sequence[JobDemand]) -> float:
    """The share that late batches have whatever the online load: as much of the granted one as they are urgent."""
    if capacity.state != "serving" or not late:
        return 0.0
    return rule.deadline_floor * max(job.urgency for job in late)


def share_out(
    late: Iterable[JobDemand], requests: int, limits: Mapping[str, int] = MappingProxyType({})
) -> tuple[JobShare, ...]:
    """So many places for late batches: for each in turn, of those that are left, a part as large as its urgency.

    So a batch that begins to be late gets one place, and more as it gets later; one that will be late gets all.

    Args:
        late: The batches.
        requests: How many places there are.
        limits: The most for all batches of a tenant together that were not promised their windows.
    """
    left = dict(limits)
    shares = []
    for job in late:
        if requests <= 0:
            break
        most = min(requests, math.ceil(requests * job.urgency))
        if not job.promised and job.tenant in left:
            most = min(most, left[job.tenant])
            left[job.tenant] -= most
        if most > 0:
            shares.append(JobShare(job.batch_id, most))
            requests -= most
    return tuple(shares)


class Placement:
    """Where batches were placed in the last round, so that they stay there.

    A replica's turns stay as they are, too, while what it is to have of each batch is about the same: it is then at the
    turn where it was, and nothing is written. What a tenant gets too much or too little by that is in what it has used.
    """

    def __init__(self) -> None:
        self._homes: dict[str, Homes] = {}
        self._turns: dict[str, Mapping[str, tuple[JobShare, ...]]] = {}

    def restore(self, allotments: Mapping[str, Allotment], model: str) -> None:
        """Takes the allotments of a model's replicas, by replica id, for those of the last round."""
        homes: dict[str, dict[str, int]] = {}
        for name, allotment in allotments.items():
            for batch_id, most in allotment.jobs:
                own = homes.setdefault(batch_id, {})
                own[name] = own.get(name, 0) + most
        self._homes[model] = homes
        self._turns[model] = {name: allotment.jobs for name, allotment in allotments.items()}

    def place(
        self, model: str, dealt: Sequence[tuple[str, int]], rooms: Mapping[str, Room], prefixes: Mapping[str, str]
    ) -> Mapping[str, tuple[JobShare, ...]]:
        """The turns of each replica, from what `placement.place` says."""
        placed = place(dealt, rooms, prefixes, self._homes.get(model, {}))
        self._homes[model] = placed.homes
        before = self._turns.get(model, {}) if len(rooms) > 1 else {}
        self._turns[model] = {
            name: before[name]
            if name in before and _is_like(before[name], pieces)
            else tuple([JobShare(*piece) for piece in pieces])
            for name, pieces in placed.pieces.items()
        }
        return self._turns[model]


def allot(
    capacities: Iterable[ReplicaCapacity],
    shares: FairShares,
    rule: WindowRule,
    previous_windows: Mapping[str, int],
    late: Sequence[JobDemand] = (),
    placement: Placement | None = None,
) -> dict[str, Allotment]:
    """The allotment of every replica, by replica id. A job goes only where its model is served.

    Args:
        capacities: What the replicas have reported last.
        shares: Whose turn it is, settled just before.
        rule: The thresholds.
        previous_windows: The windows that they had so far.
        late: Batches that are not on track, the most urgent one first.
        placement: Where batches are; it follows.
    """
    placement = placement or Placement()
    of_model: dict[str, list[ReplicaCapacity]] = {}
    for one in capacities:
        of_model.setdefault(one.model, []).append(one)
    allotments: dict[str, Allotment] = {}
    for model, serving in of_model.items():
        windows = {one.replica_id: window_of(one, rule, previous_windows.get(one.replica_id)) for one in serving}
        # Where all are silent it is the clock that has jumped.
        heard = [one for one in serving if not one.silent] or serving
        rooms = {one.replica_id: _find_room(one, windows[one.replica_id]) for one in heard if windows[one.replica_id]}
        dealt = shares.deal(model, sum(room.places for room in rooms.values()))
        jobs = placement.place(model, dealt, rooms, shares.list_prefixes(model)) if rooms else {}
        of_late = _LateShares(rule, shares, [job for job in late if job.model == model])
        sizes = shares.list_sizes(model)
        for one in serving:
            name = one.replica_id
            own = jobs.get(name, ())
            handed, floor, floor_share = of_late.find(windows[name], one)
            tokens = window_tokens_of(one)
            counted = (*handed, *own) if tokens is not None else ()
            own_sizes = {share.batch_id: sizes[share.batch_id] for share in counted}
            allotments[name] = Allotment(windows[name], own, handed, floor, floor_share, tokens, own_sizes)
    return allotments


def _is_like(before: Sequence[tuple[str, int]], now: Sequence[tuple[str, int]]) -> bool:
    """Whether these are the same batches, each with about as many requests."""
    counts: dict[str, int] = {}
    for batch_id, count in before:
        counts[batch_id] = counts.get(batch_id, 0) + count
    left = dict(counts)
    for batch_id, count in now:
        if batch_id not in counts:
            return False
        left[batch_id] -= count
    for batch_id, change in left.items():
        most = counts[batch_id]
        if change >= most or abs(change) > max(1, UNNOTICED * most):
            return False
    return True


def _find_room(capacity: ReplicaCapacity, window: int) -> Room:
    return Room(max(0, window - capacity.offline_running), LOOKAHEAD * window, capacity.stopped)


class _LateShares:
    """What late batches of a model get before all turns. It is the same for replicas with as many places."""

    def __init__(self, rule: WindowRule, shares: FairShares, late: Sequence[JobDemand]) -> None:
        self._rule = rule
        self._shares = shares
        self._late = late
        self._waiting = [job for job in late if job.ready > 0]
        self._found: dict[tuple[int, bool], tuple[tuple[JobShare, ...], int, float]] = {}

    def find(self, window: int, capacity: ReplicaCapacity) -> tuple[tuple[JobShare, ...], int, float]:
        """Their shares, and `floor` and `floor_share` as in `Allotment`."""
        if not self._late:
            return (), 0, 0.0
        key = (window, capacity.state == "serving")
        if key not in self._found:
            # Also for requests of late batches that run already and are their last ones.
            floor_share = floor_share_of(capacity, self._rule, self._late)
            floor = math.ceil(self._rule.max_window * floor_share - 1e-9)
            places = max(window, floor)
            # Where the window is shut nobody has a turn: the floor is shared by those who are late.
            among = None if window > 0 else {job.tenant for job in self._waiting}
            limits = self._shares.limit_places(capacity.model, places, among)
            self._found[key] = (share_out(self._waiting, places, limits), floor, floor_share)
        return self._found[key]
