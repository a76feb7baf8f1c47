from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from conserve.policy.replica_capacity import Headroom, KvRoom, ReplicaCapacity
from conserve.policy.window import WindowRule, fit_requests, window_of, window_tokens_of

RULE = WindowRule(64, 8, 4, 0.8, 0.5)
IDLE = ReplicaCapacity("r1", "m", "serving", headroom=Headroom(10_000.0, 10.0))


def with_requests(requests: float, **changes: object) -> ReplicaCapacity:
    return replace(IDLE, headroom=Headroom(1_000.0 * requests, requests), **changes)  # type: ignore[arg-type]


def test_window_follows_the_measured_headroom_and_not_the_thresholds() -> None:
    assert window_of(with_requests(10.0), RULE, None) == 20
    assert window_of(with_requests(10.0, online_running=50, kv_usage=0.99), RULE, None) == 20
    assert window_of(with_requests(0.0), RULE, 20) == 0
    assert window_of(with_requests(1_000.0), RULE, None) == 64
    assert window_of(with_requests(10.0, state="draining"), RULE, 20) == 0
    assert window_of(with_requests(10.0), replace(RULE, max_window=0), 20) == 0


def test_an_idle_replica_is_harvested_to_the_full() -> None:
    assert window_of(with_requests(32.0), RULE, None) == RULE.max_window


def test_without_a_headroom_thresholds_count() -> None:
    assert window_of(replace(IDLE, headroom=None, online_running=8), RULE, 64) == 0
    assert window_of(replace(IDLE, headroom=None), RULE, 64) == 64


def test_a_window_is_kept_until_it_would_be_much_smaller() -> None:
    assert window_of(with_requests(9.0), RULE, 20) == 20
    assert window_of(with_requests(8.0), RULE, 20) == 20
    assert window_of(with_requests(7.4), RULE, 20) == 15
    assert window_of(with_requests(11.0), RULE, 20) == 22, "wider at once"


@given(st.floats(0, 100), st.none() | st.integers(0, 64), st.none() | st.floats(0, 1))
def test_steady_inputs_give_a_steady_window(requests: float, previous: int | None, attainment: float | None) -> None:
    capacity = with_requests(requests, slo_attainment=attainment)
    first = window_of(capacity, RULE, previous)
    assert window_of(capacity, RULE, first) == first
    assert 0 <= first <= RULE.max_window


def test_late_online_tokens_narrow_the_window_in_proportion() -> None:
    capacity = with_requests(1_000.0)
    windows = [
        window_of(replace(capacity, slo_attainment=share / 100), RULE, None) for share in (100, 90, 85, 80, 75, 50, 0)
    ]
    assert windows == [64, 64, 48, 32, 16, 16, 16]
    assert all(after <= before for before, after in pairwise(windows))
    assert window_of(replace(capacity, slo_attainment=0.5), replace(RULE, slo_attainment=0.0), None) == 64
    assert window_of(replace(IDLE, headroom=None, slo_attainment=0.5), RULE, 64) == 16


def test_tokens_in_flight_are_what_online_requests_leave() -> None:
    assert window_tokens_of(IDLE) is None
    room = KvRoom(32_000, free_tokens=10_000, reserved_tokens=3_000, offline_tokens=5_500)
    assert window_tokens_of(replace(IDLE, kv_room=room)) == 12_000, "in steps of a thirty-second"
    assert window_tokens_of(replace(IDLE, kv_room=replace(room, free_tokens=0, offline_tokens=0))) == 0


@pytest.mark.parametrize(
    ("running", "expected"), [({}, 2), ({"long": 1}, 1), ({"long": 1, "short": 20}, 0), ({"unknown": 1}, 1)]
)
def test_requests_fit_into_the_tokens_that_are_left(running: dict[str, int], expected: int) -> None:
    assert fit_requests(8_500, {"long": 4_000.0, "short": 100.0}, running, "long") == expected


def test_one_request_always_fits_where_none_runs() -> None:
    assert fit_requests(100, {"a": 4_000.0}, {}, "a") == 1
    assert fit_requests(100, {"a": 4_000.0}, {"a": 0}, "a") == 1
    assert fit_requests(100, {"a": 4_000.0}, {"a": 1}, "a") == 0
    assert fit_requests(None, {}, {"a": 99}, "a") is None
