from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from conserve.policy.allotment import (
    LOOKAHEAD,
    Allotment,
    JobShare,
    allot,
    floor_share_of,
    pass_over_stopped,
    share_out,
)
from conserve.policy.fair_shares import FairShares
from conserve.policy.ordering import JobDemand, list_late, order_jobs
from conserve.policy.replica_capacity import ReplicaCapacity
from conserve.policy.window import WindowRule, window_of

RULE = WindowRule(
    max_window=8, shut_at_online_requests=8, open_at_online_requests=4, shut_at_kv_usage=0.8, open_at_kv_usage=0.5
)
IDLE = ReplicaCapacity("r1", "m", "serving")


def job(
    batch_id: str, *, model: str = "m", created_at: float = 0, expires_at: float = 100, ready: int = 1
) -> JobDemand:
    return JobDemand(batch_id, model, created_at, expires_at, ready)


def settled(jobs: list[JobDemand]) -> FairShares:
    shares = FairShares()
    shares.settle(jobs, {})
    return shares


def test_idle_replica_gets_the_whole_window() -> None:
    assert window_of(IDLE, RULE, None) == 8


def test_window_narrows_as_online_load_rises() -> None:
    windows = [window_of(replace(IDLE, online_running=online), RULE, 8) for online in range(8)]
    assert windows == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    "busy",
    [
        replace(IDLE, online_running=8),
        replace(IDLE, online_running=5, online_waiting=3),
        replace(IDLE, kv_usage=0.8),
        replace(IDLE, state="draining"),
        replace(IDLE, state="starting"),
    ],
)
def test_window_shuts(busy: ReplicaCapacity) -> None:
    assert window_of(busy, RULE, 8) == 0


def test_shut_window_stays_shut_until_load_is_low_again() -> None:
    for online, kv_usage in ((5, 0.0), (0, 0.6)):
        load = replace(IDLE, online_running=online, kv_usage=kv_usage)
        assert window_of(load, RULE, 0) == 0
        assert window_of(load, RULE, 1) > 0
    assert window_of(replace(IDLE, online_running=4, kv_usage=0.5), RULE, 0) == 4


@given(
    online=st.integers(0, 100),
    waiting=st.integers(0, 100),
    kv_usage=st.floats(0, 1),
    previous=st.none() | st.integers(0, 64),
    state=st.sampled_from(["starting", "serving", "draining"]),
)
def test_window_is_never_outside_its_bounds(online, waiting, kv_usage, previous, state) -> None:  # type: ignore[no-untyped-def]
    capacity = ReplicaCapacity("r", "m", state, online, waiting, kv_usage)
    assert 0 <= window_of(capacity, RULE, previous) <= RULE.max_window


def test_order_is_by_end_of_window_then_age() -> None:
    jobs = [job("late", expires_at=300), job("b", created_at=2), job("a", created_at=1), job("c", created_at=2)]
    assert [one.batch_id for one in order_jobs(jobs)] == ["a", "b", "c", "late"]


def test_priority_comes_before_the_end_of_the_window() -> None:
    jobs = [job("soon", expires_at=1), replace(job("high"), priority=1), replace(job("low", expires_at=1), priority=-1)]
    assert [one.batch_id for one in order_jobs(jobs)] == ["high", "soon", "low"]


def test_a_job_goes_only_where_its_model_is_served_and_work_is_left() -> None:
    capacities = [IDLE, replace(IDLE, replica_id="r2", model="other", online_running=8)]
    shares = settled([job("x"), job("y", model="other"), job("done", ready=0)])
    assert allot(capacities, shares, RULE, {}) == {"r1": Allotment(8, (JobShare("x", 1),)), "r2": Allotment(0)}


def test_previous_window_of_each_replica_counts() -> None:
    capacities = [replace(IDLE, replica_id=name, online_running=6) for name in ("was-open", "was-shut")]
    allotments = allot(capacities, settled([]), RULE, {"was-open": 3, "was-shut": 0})
    assert (allotments["was-open"].window, allotments["was-shut"].window) == (2, 0)


def test_replicas_are_offered_more_than_fits_and_no_request_twice() -> None:
    capacities = [replace(IDLE, replica_id=name) for name in ("r1", "r2")]
    allotments = allot(capacities, settled([job("x", ready=50), job("y", ready=500, created_at=1)]), RULE, {})
    offered = [share for allotment in allotments.values() for share in allotment.jobs]
    assert sum(share.most for share in offered if share.batch_id == "x") == 50
    assert sum(share.most for share in offered) == 2 * LOOKAHEAD * RULE.max_window
    assert all(allotment.jobs[0].batch_id == "x" for allotment in allotments.values())


def test_what_all_replicas_have_stopped_is_passed_over() -> None:
    capacities = [
        replace(IDLE, stopped=frozenset({"a", "b"})),
        replace(IDLE, replica_id="r2", stopped=frozenset({"b", "x"})),
        ReplicaCapacity("r3", "other", "serving", stopped=frozenset({"x"})),
    ]
    jobs = [job("a"), job("b"), job("c"), job("x", model="other"), job("y", model="third")]
    assert [one.ready for one in pass_over_stopped(jobs, capacities)] == [1, 0, 1, 0, 1]
    assert pass_over_stopped(jobs, []) == jobs


# Batches that are not on track.


def urgent(batch_id: str, urgency: float, **changes: float) -> JobDemand:
    return replace(job(batch_id), urgency=urgency, **changes)  # type: ignore[arg-type]


def test_late_ones_are_listed_by_urgency_whatever_their_priority() -> None:
    jobs = [urgent("a", 0.1, priority=5), job("on-track"), urgent("b", 0.9, priority=-5), urgent("c", 0.1)]
    assert [one.batch_id for one in list_late(jobs)] == ["b", "a", "c"]


def test_a_late_batch_gets_one_place_first_and_more_as_it_gets_later() -> None:
    places = [dict(share_out([urgent("a", urgency / 100)], 8))["a"] for urgency in range(1, 101)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (1, 8)
    assert max(after - before for before, after in pairwise(places)) == 1


def test_the_next_one_gets_its_part_of_what_is_left() -> None:
    late = [urgent("a", 0.5), urgent("b", 0.5), urgent("c", 0.1)]
    assert share_out(late, 8) == (("a", 4), ("b", 2), ("c", 1))
    assert share_out([urgent("a", 1.0), urgent("b", 1.0)], 8) == (("a", 8),)
    assert share_out(late, 0) == ()


@given(st.lists(st.floats(0.001, 1), max_size=20), st.integers(0, 64))
def test_no_more_places_are_given_out_than_there_are(urgencies: list[float], requests: int) -> None:
    shares = share_out([urgent(str(index), urgency) for index, urgency in enumerate(urgencies)], requests)
    assert sum(most for _, most in shares) <= requests
    assert all(most > 0 for _, most in shares)


# Several tenants.


def of_tenants(promised: bool, *urgencies: tuple[str, float]) -> list[JobDemand]:
    return [
        replace(job(f"{tenant}{index}", ready=50), tenant=tenant, urgency=urgency, promised=promised)
        for index, (tenant, urgency) in enumerate(urgencies)
    ]


def places_of(allotment: Allotment) -> dict[str, int]:
    return {share.batch_id: share.most for share in allotment.late}


def test_a_batch_that_was_promised_nothing_rises_within_the_part_of_its_tenant() -> None:
    jobs = of_tenants(False, ("a", 1.0), ("a", 1.0), ("a", 0.5), ("b", 0.0), ("c", 0.0))
    assert places_of(allot_late(jobs, RULE)) == {"a0": 3}
    alone = [one for one in jobs if one.tenant == "a"]
    assert places_of(allot_late(alone, RULE)) == {"a0": 8}
    others_are_done = [*alone, replace(jobs[3], ready=0)]
    assert places_of(allot_late(others_are_done, RULE)) == {"a0": 8}


def test_all_such_batches_of_a_tenant_share_its_part() -> None:
    jobs = of_tenants(False, ("a", 0.25), ("a", 0.25), ("a", 0.25), ("b", 1.0))
    assert places_of(allot_late(jobs, RULE)) == {"b3": 4, "a0": 1, "a1": 1, "a2": 1}
    assert list(places_of(allot_late(jobs, RULE))) == ["b3", "a0", "a1", "a2"]
    few = replace(RULE, max_window=4)
    assert places_of(allot_late(jobs, few)) == {"b3": 2, "a0": 1, "a1": 1}


def test_a_batch_that_was_promised_its_window_rises_over_all_tenants_and_first() -> None:
    jobs = [*of_tenants(True, ("a", 0.75)), *of_tenants(False, ("b", 1.0), ("c", 0.0))]
    assert allot_late(jobs, RULE).late == (JobShare("a0", 6), JobShare("b0", 2))


def test_on_the_floor_parts_count_too() -> None:
    busy, granted = replace(IDLE, online_running=20), replace(RULE, deadline_floor=0.5)
    jobs = of_tenants(False, ("a", 1.0), ("b", 1.0))
    assert places_of(allot_late(jobs, granted, busy)) == {"a0": 2, "b1": 2}


def test_where_nobody_has_a_turn_the_floor_is_for_those_who_are_late() -> None:
    busy, granted = replace(IDLE, online_running=20), replace(RULE, deadline_floor=0.5)
    jobs = of_tenants(False, ("a", 1.0), ("b", 0.0))
    assert places_of(allot_late(jobs, granted, busy)) == {"a0": 4}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.001, 1)), min_size=1, max_size=20),
    st.integers(0, 64),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 64)),
)
def test_limits_are_kept(late: list[tuple[str, float]], requests: int, limits: dict[str, int]) -> None:
    jobs = of_tenants(False, *late)
    tenants = {one.batch_id: one.tenant for one in jobs}
    shares = share_out(jobs, requests, limits)
    assert sum(most for _, most in shares) <= requests
    assert all(most > 0 for _, most in shares)
    for tenant, limit in limits.items():
        assert sum(most for batch_id, most in shares if tenants[batch_id] == tenant) <= limit


def allot_late(jobs: list[JobDemand], rule: WindowRule, capacity: ReplicaCapacity = IDLE) -> Allotment:
    return allot([capacity], settled(jobs), rule, {}, list_late(jobs))["r1"]


def test_late_batches_stand_before_the_turns_and_in_them() -> None:
    allotment = allot_late([job("a"), urgent("b", 0.25, expires_at=500)], RULE)
    assert allotment == Allotment(8, (JobShare("a", 1), JobShare("b", 1)), (JobShare("b", 2),))
    assert allotment.without_late("b") == replace(allotment, late=())


def test_a_floor_is_open_to_late_batches_where_the_window_is_shut() -> None:
    busy = replace(IDLE, online_running=20)
    granted = replace(RULE, deadline_floor=0.25)
    jobs = [job("a"), urgent("b", 1.0), urgent("c", 0.2)]
    assert allot_late(jobs, RULE, busy) == Allotment(0)
    assert allot_late(jobs, granted, busy) == Allotment(0, (), (JobShare("b", 2),), 2, 0.25)
    assert allot_late([job("a")], granted, busy).floor == 0


def test_a_floor_grows_with_urgency_and_is_whole_requests() -> None:
    granted = replace(RULE, deadline_floor=0.5)
    allotments = [allot_late([urgent("a", share)], granted) for share in (0.01, 0.5, 1.0)]
    assert [allotment.floor for allotment in allotments] == [1, 2, 4]
    assert [allotment.floor_share for allotment in allotments] == [0.005, 0.25, 0.5]
    assert floor_share_of(IDLE, RULE, [urgent("a", 1.0)]) == 0
    assert floor_share_of(replace(IDLE, state="draining"), granted, [urgent("a", 1.0)]) == 0


def test_the_floor_stays_for_the_last_requests_of_a_late_batch() -> None:
    granted = replace(RULE, deadline_floor=0.25)
    assert allot_late([urgent("a", 1.0, ready=0)], granted) == Allotment(8, (), (), 2, 0.25)


def test_only_batches_of_the_replica_s_model_are_late_for_it() -> None:
    other = replace(urgent("x", 1.0), model="other")
    assert allot_late([other], replace(RULE, deadline_floor=1.0)) == Allotment(8)
