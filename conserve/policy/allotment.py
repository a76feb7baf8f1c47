"""From the capacity reports of all replicas to what each of them may harvest.

A first, simple rule: a replica's window is open while its online load and its KV use are low, narrows as online load
rises, and is shut when either is high. Two thresholds for each (shut at, open at) keep it from flapping.

Batches that are not on track go before the others, each up to a part of the window that is as large as its urgency:
those that were promised their completion windows before the turns of all tenants, others within their tenant's part. A
floor, if the operator grants one, is open to them even where the window is shut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from conserve.policy.fair_shares import FairShares
from conserve.policy.ordering import JobDemand

ReplicaState = Literal["starting", "serving", "draining"]

LOOKAHEAD: Final = 4
"""A replica is offered so many windows of requests: what may be done until it hears anew, and some that others take."""


@dataclass(frozen=True)
class ReplicaCapacity:
    """What a replica says about itself.

    `online_running` and `online_waiting` count online requests that have and have not got their first token;
    `kv_usage` is the share of KV blocks in use, 0 to 1; `offline_running` counts what is in flight of its window. Of
    the batches in `stopped` it begins nothing for a while, for their faults.
    """

    replica_id: str
    model: str
    state: ReplicaState
    online_running: int = 0
    online_waiting: int = 0
    kv_usage: float = 0.0
    offline_running: int = 0
    stopped: frozenset[str] = frozenset()


@dataclass(frozen=True)
class WindowRule:
    """When the window of offline requests opens and shuts; the fields are those of `HarvestSettings`."""

    max_window: int
    shut_at_online_requests: int
    open_at_online_requests: int
    shut_at_kv_usage: float
    open_at_kv_usage: float
    deadline_floor: float = 0.0


class JobShare(NamedTuple):
    """The most requests of a batch that are taken in one turn."""

    batch_id: str
    most: int


@dataclass(frozen=True)
class Allotment:
    """What a replica may harvest.

    Attributes:
        window: So many offline requests in flight.
        jobs: They are taken in these turns; see `turns.ShareTurns`.
        late: Before that from these, each up to so many requests in flight here, in this order.
        floor: So many requests of `late` may be in flight even where the window is smaller.
        floor_share: Share of the engine's time that offline requests get beside online ones, whatever those leave.
    """

    window: int
    jobs: tuple[JobShare, ...] = ()
    late: tuple[JobShare, ...] = ()
    floor: int = 0
    floor_share: float = 0.0

    def without_late(self, batch_id: str) -> Allotment:
        """The same without a late batch."""
        return replace(self, late=tuple(share for share in self.late if share.batch_id != batch_id))


def pass_over_stopped(jobs: Iterable[JobDemand], capacities: Iterable[ReplicaCapacity]) -> list[JobDemand]:
    """The same batches; those that all replicas of their model have stopped have nothing to take.

    Else the turns of a tenant whose requests fail and so use nothing would come to be all of them.
    """
    stopped: dict[str, frozenset[str]] = {}
    for one in capacities:
        stopped[one.model] = stopped.get(one.model, one.stopped) & one.stopped
    return [replace(job, ready=0) if job.batch_id in stopped.get(job.model, ()) else job for job in jobs]


def window_of(capacity: ReplicaCapacity, rule: WindowRule, previous_window: int | None) -> int:
    """How many offline requests may be in flight on a replica.

    Args:
        capacity: what the replica reported last.
        rule: the thresholds.
        previous_window: the window it had so far; None if it never had one, which counts as open.
    """
    if capacity.state != "serving":
        return 0
    online = capacity.online_running + capacity.online_waiting
    if previous_window == 0:
        is_open = online <= rule.open_at_online_requests and capacity.kv_usage <= rule.open_at_kv_usage
    else:
        is_open = online < rule.shut_at_online_requests and capacity.kv_usage < rule.shut_at_kv_usage
    if not is_open:
        return 0
    room = max(0.0, 1.0 - online / rule.shut_at_online_requests)
    return math.ceil(rule.max_window * room)


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


def allot(
    capacities: Iterable[ReplicaCapacity],
    shares: FairShares,
    rule: WindowRule,
    previous_windows: Mapping[str, int],
    late: Sequence[JobDemand] = (),
) -> dict[str, Allotment]:
    """The allotment of every replica, by replica id. A job goes only where its model is served.

    Args:
        capacities: What the replicas have reported last.
        shares: Whose turn it is, settled just before.
        rule: The thresholds.
        previous_windows: The windows that they had so far.
        late: Batches that are not on track, the most urgent one first.
    """
    replicas = list(capacities)
    windows = {one.replica_id: window_of(one, rule, previous_windows.get(one.replica_id)) for one in replicas}
    jobs: dict[str, tuple[JobShare, ...]] = {}
    for model in dict.fromkeys(one.model for one in replicas):
        serving = [one for one in replicas if one.model == model]
        dealt = shares.deal(model, LOOKAHEAD * sum(windows[one.replica_id] for one in serving))
        jobs |= _hand_out(dealt, serving, windows)
    return {
        one.replica_id: _put_late_first(
            Allotment(windows[one.replica_id], jobs.get(one.replica_id, ())),
            one,
            rule,
            [job for job in late if job.model == one.model],
            shares,
        )
        for one in replicas
    }


def _put_late_first(
    allotment: Allotment, capacity: ReplicaCapacity, rule: WindowRule, late: Sequence[JobDemand], shares: FairShares
) -> Allotment:
    # Also for requests of late batches that run already and are their last ones.
    floor_share = floor_share_of(capacity, rule, late)
    floor = math.ceil(rule.max_window * floor_share - 1e-9)
    places = max(allotment.window, floor)
    waiting = [job for job in late if job.ready > 0]
    # Where the window is shut nobody has a turn: the floor is shared by those who are late.
    among = None if allotment.window > 0 else {job.tenant for job in waiting}
    handed = share_out(waiting, places, shares.limit_places(capacity.model, places, among))
    return replace(allotment, late=handed, floor=floor, floor_share=floor_share)


def _hand_out(
    dealt: Sequence[tuple[str, int]], serving: Sequence[ReplicaCapacity], windows: Mapping[str, int]
) -> dict[str, tuple[JobShare, ...]]:
    """Hands requests to replicas one by one in turn: first those that can begin at once, then what may come after."""
    handed: dict[str, list[JobShare]] = {one.replica_id: [] for one in serving}
    free = {one.replica_id: max(0, windows[one.replica_id] - one.offline_running) for one in serving}
    rest = {name: LOOKAHEAD * windows[name] - room for name, room in free.items()}
    # Who has most room comes first, so that a single request goes where nothing holds it up.
    order = sorted(free, key=lambda name: -free[name])
    places = (name for room in (free, rest) for name in _take_turns(order, room))
    for batch_id, count in dealt:
        for _, name in zip(range(count), places, strict=False):
            own = handed[name]
            if own and own[-1].batch_id == batch_id:
                own[-1] = JobShare(batch_id, own[-1].most + 1)
            else:
                own.append(JobShare(batch_id, 1))
    return {name: tuple(own) for name, own in handed.items()}


def _take_turns(order: Sequence[str], room: Mapping[str, int]) -> Iterator[str]:
    """Names in turn, each as often as it has room."""
    for turn in range(max(room.values(), default=0)):
        yield from (name for name in order if room[name] > turn)
