"""From the capacity reports of all replicas to what each of them may harvest.

A first, simple rule: a replica's window is open while its online load and its KV use are low, narrows as online load
rises, and is shut when either is high. Two thresholds for each (shut at, open at) keep it from flapping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from conserve.policy.ordering import JobDemand, order_jobs

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


@dataclass(frozen=True)
class Allotment:
    """What a replica may harvest: so many offline requests in flight, taken from these batches in this order."""

    window: int
    batch_ids: tuple[str, ...] = ()


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


def allot(
    capacities: Iterable[ReplicaCapacity],
    jobs: Iterable[JobDemand],
    rule: WindowRule,
    previous_windows: Mapping[str, int],
) -> dict[str, Allotment]:
    """The allotment of every replica, by replica id. A job goes only where its model is served."""
    ordered = order_jobs(jobs)
    return {
        capacity.replica_id: Allotment(
            window=window_of(capacity, rule, previous_windows.get(capacity.replica_id)),
            batch_ids=tuple(job.batch_id for job in ordered if job.ready > 0 and job.model == capacity.model),
        )
        for capacity in capacities
    }
