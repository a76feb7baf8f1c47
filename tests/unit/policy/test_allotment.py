from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.allotment import LOOKAHEAD, Allotment, JobShare, ReplicaCapacity, WindowRule, allot, window_of
from conserve.policy.fair_shares import FairShares
from conserve.policy.ordering import JobDemand, order_jobs

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
