"""How many offline requests and tokens may be in flight on a replica.

A replica that measures its headroom gets as many requests as use that up, and some that wait, as long as its online
objectives hold: where fewer of the online tokens come in time than they should, the window narrows in proportion.

For one that reports no headroom (vLLM's own scheduler, a model that has not learnt yet, an older version) there are
thresholds: the window is open while online load and KV use are low, narrows as online load rises, and is shut when
either is high. Two of each (shut at, open at) keep it from flapping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import msgspec

from conserve.policy.replica_capacity import ReplicaCapacity
from conserve.policy.request_size import UNKNOWN_REQUEST_TOKENS

SPARE_REQUESTS: Final = 2.0
"""So many times the requests that use the headroom up: who waits in the engine begins in the iteration in which it can,
and the headroom of the next second may be larger than that of the last one."""
LEAST_NARROWING: Final = 0.8
"""A window stays as it was until it would be smaller than this part of it."""
KV_STEPS: Final = 32
NARROWING_SPAN: Final = 2.0
"""When so many times as many online tokens are late as may be beyond those that may, the window would be shut..."""
NARROWEST: Final = 0.25
"""...but that it stays open by this share."""


class WindowRule(msgspec.Struct, frozen=True):
    """When the window of offline requests opens and shuts; the fields are those of `HarvestSettings`."""

    max_window: int
    shut_at_online_requests: int
    open_at_online_requests: int
    shut_at_kv_usage: float
    open_at_kv_usage: float
    deadline_floor: float = 0.0
    slo_attainment: float = 0.9


def window_of(capacity: ReplicaCapacity, rule: WindowRule, previous_window: int | None) -> int:
    """How many offline requests may be in flight on a replica.

    Args:
        capacity: what the replica reported last.
        rule: the thresholds.
        previous_window: the window it had so far; None if it never had one, which counts as open.
    """
    if capacity.state != "serving" or rule.max_window <= 0:
        return 0
    if capacity.headroom is None:
        window = _find_by_thresholds(capacity, rule, previous_window)
    else:
        window = _find_by_headroom(capacity.headroom.requests, rule, previous_window)
    return min(window, _limit_for_objectives(capacity.slo_attainment, rule))


def window_tokens_of(capacity: ReplicaCapacity) -> int | None:
    """Tokens, prompt and output, that offline requests in flight on a replica may come to; None: it does not say.

    A single request may be longer. Rounded down, so that it does not change with each block.
    """
    room = capacity.kv_room
    if room is None:
        return None
    step = max(1, room.tokens // KV_STEPS)
    return room.for_offline_tokens // step * step


def fit_requests(
    window_tokens: int | None, request_tokens: Mapping[str, float], running: Mapping[str, int], batch_id: str
) -> int | None:
    """How many more requests of a batch fit into the tokens that may be in flight; None: any number.

    One always does where none is running, however long it is.

    Args:
        window_tokens: As `window_tokens_of` gives it.
        request_tokens: What a request takes, on average, by batch.
        running: Requests in flight, by batch.
        batch_id: Of which batch.
    """
    if window_tokens is None:
        return None
    used = sum(count * request_tokens.get(one, UNKNOWN_REQUEST_TOKENS) for one, count in running.items())
    tokens = max(1.0, request_tokens.get(batch_id, UNKNOWN_REQUEST_TOKENS))
    return max(0 if any(running.values()) else 1, math.floor((window_tokens - used) / tokens))


def _find_by_headroom(requests: float, rule: WindowRule, previous_window: int | None) -> int:
    wanted = min(rule.max_window, math.ceil(SPARE_REQUESTS * requests - 1e-9))
    if previous_window is None or previous_window > rule.max_window:
        return wanted
    return previous_window if LEAST_NARROWING * previous_window <= wanted < previous_window else wanted


def _find_by_thresholds(capacity: ReplicaCapacity, rule: WindowRule, previous_window: int | None) -> int:
    online = capacity.online_running + capacity.online_waiting
    if previous_window == 0:
        is_open = online <= rule.open_at_online_requests and capacity.kv_usage <= rule.open_at_kv_usage
    else:
        is_open = online < rule.shut_at_online_requests and capacity.kv_usage < rule.shut_at_kv_usage
    if not is_open:
        return 0
    room = max(0.0, 1.0 - online / rule.shut_at_online_requests)
    return math.ceil(rule.max_window * room)


def _limit_for_objectives(attainment: float | None, rule: WindowRule) -> int:
    """The widest window where so many online tokens were in time.

    It is not shut for that: the scheduler puts offline work behind all online work, and where it is not that which
    makes online tokens late, the window would stay shut for nothing.
    """
    if attainment is None or attainment >= rule.slo_attainment:
        return rule.max_window
    span = NARROWING_SPAN * max(1.0 - rule.slo_attainment, 1e-3)
    kept = 1.0 - (rule.slo_attainment - attainment) / span
    return max(1, math.floor(rule.max_window * max(NARROWEST, kept) + 1e-9))
