"""From the capacity reports of all replicas to what each of them may harvest.

A first, simple rule: a replica's window is open while its online load and its KV use are low, narrows as online load
rises, and is shut when either is high. Two thresholds for each (shut at, open at) keep it from flapping.

Batches that are not on track go before the others, each up to a part of the window that is as large as its urgency. A
floor, if the operator grants one, is open to them even where the window is shut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from conserve.policy.ordering import JobDemand, list_late, order_jobs

ReplicaState = Literal["starting", "serving", "draining"]


@dataclass(frozen=True)
class ReplicaCapacity:
    """What a replica says about itself.

    `online_running` and `online_waiting` count online requests that have and have not got their first token;
    `kv_usage` is the share of KV blocks in use, 0 to 1.
    """

    replica_id: str
    model: str
    state: ReplicaState
    online_running: int = 0
    online_waiting: int = 0
    kv_usage: float = 0.0


@dataclass(frozen=True)
class WindowRule:
    """When the window of offline requests opens and shuts; the fields are those of `HarvestSettings`."""

    max_window: int
    shut_at_online_requests: int
    open_at_online_requests: int
    shut_at_kv_usage: float
    open_at_kv_usage: float
    deadline_floor: float = 0.0


@dataclass(frozen=True)
class Allotment:
    """What a replica may harvest.

    Attributes:
        window: So many offline requests in flight.
        batch_ids: From these batches, in this order.
        late: Before that from these, each up to so many requests in flight here, in this order.
        floor: So many requests of `late` may be in flight even where the window is smaller.
        floor_share: Share of the engine's time that offline requests get beside online ones, whatever those leave.
    """

    window: int
    batch_ids: tuple[str, ...] = ()
    late: tuple[tuple[str, int], ...] = ()
    floor: int = 0
    floor_share: float = 0.0

    def without(self, batch_id: str) -> Allotment:
        """The same without a batch."""
        batch_ids = tuple(one for one in self.batch_ids if one != batch_id)
        late = tuple(pair for pair in self.late if pair[0] != batch_id)
        return replace(self, batch_ids=batch_ids, late=late)


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


def share_out(late: Iterable[JobDemand], requests: int) -> tuple[tuple[str, int], ...]:
    """So many places for late batches: for each in turn, of those that are left, a part as large as its urgency.

    So a batch that begins to be late gets one place, and more as it gets later; one that will be late gets all.
    """
    shares = []
    for job in late:
        if requests <= 0:
            break
        most = min(requests, math.ceil(requests * job.urgency))
        shares.append((job.batch_id, most))
        requests -= most
    return tuple(shares)


def allot(
    capacities: Iterable[ReplicaCapacity],
    jobs: Iterable[JobDemand],
    rule: WindowRule,
    previous_windows: Mapping[str, int],
) -> dict[str, Allotment]:
    """The allotment of every replica, by replica id. A job goes only where its model is served."""
    known = list(jobs)
    ordered = [job for job in order_jobs(known) if job.ready > 0]
    late = list_late(known)
    allotments = {}
    for capacity in capacities:
        window = window_of(capacity, rule, previous_windows.get(capacity.replica_id))
        own_late = [job for job in late if job.model == capacity.model]
        # Also for requests of theirs that run already and are their last ones.
        floor_share = floor_share_of(capacity, rule, own_late)
        floor = math.ceil(rule.max_window * floor_share - 1e-9)
        allotments[capacity.replica_id] = Allotment(
            window=window,
            batch_ids=tuple(job.batch_id for job in ordered if job.model == capacity.model),
            late=share_out((job for job in own_late if job.ready > 0), max(window, floor)),
            floor=floor,
            floor_share=floor_share,
        )
    return allotments
