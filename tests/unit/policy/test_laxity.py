from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve.policy.allotment import share_out
from conserve.policy.capacity import SteadyCapacity
from conserve.policy.laxity import (
    FIRST_CONCERN,
    LAST_CONCERN_S,
    LEAST_URGENCY,
    WorkLeft,
    find_lost_urgency,
    find_urgency,
    look_ahead,
)
from conserve.policy.ordering import JobDemand, list_late, order_jobs


class Bounded(SteadyCapacity):
    """No further than a horizon."""

    def when(self, tokens: float) -> float | None:
        at_s = super().when(tokens)
        return at_s if at_s is not None and at_s <= 12 else None


def test_urgency_begins_early_rises_smoothly_and_is_1_when_it_is_too_late() -> None:
    left_s = 1_000.0
    urgencies = [find_urgency(laxity_s, left_s) for laxity_s in (1_000, 250, 200, 125, 1, 0, -5)]
    assert urgencies[:2] == [0, 0]
    assert urgencies[2:5] == [pytest.approx(1 - laxity / (FIRST_CONCERN * left_s)) for laxity in (200, 125, 1)]
    assert urgencies[5:] == [1, 1]
    assert find_urgency(5, 0) == 1


def test_the_end_goes_by_the_order_of_service_and_laxity_by_that_of_deadlines() -> None:
    works = [WorkLeft("first", 100.0, 300.0), WorkLeft("soon", 20.0, 100.0)]
    outlooks = look_ahead(works, SteadyCapacity(10.0, 0.0), 0.0)
    assert (outlooks["first"].end_s, outlooks["soon"].end_s) == (30.0, 40.0)
    assert (outlooks["first"].laxity_s, outlooks["soon"].laxity_s) == (60.0, 10.0)
    assert (outlooks["first"].urgency, outlooks["soon"].urgency) == (0.0, 0.0)


def test_what_cannot_be_seen_is_late_and_has_no_end() -> None:
    outlooks = look_ahead([WorkLeft("a", 20.0, 110.0), WorkLeft("b", 30.0, 50.0)], Bounded(10.0, 0.0), 0.0)
    assert outlooks["a"].end_s == 11.0
    assert outlooks["b"] == (None, -math.inf, 1.0)


def test_what_has_nothing_left_to_do_is_not_urgent() -> None:
    assert look_ahead([WorkLeft("a", 0.0, 0.0)], SteadyCapacity(10.0, 5.0), 5.0)["a"].urgency == 0.0


@given(
    st.lists(st.tuples(st.integers(1, 1_000), st.integers(0, 5_000)), max_size=10),
    st.integers(1, 50),
)
def test_who_is_late_is_so_even_if_all_go_by_deadlines(works: list[tuple[int, int]], rate: int) -> None:
    named = [WorkLeft(str(index), deadline_s, tokens) for index, (deadline_s, tokens) in enumerate(works)]
    outlooks = look_ahead(named, SteadyCapacity(rate, 0.0), 0.0)
    due = 0.0
    for work in sorted(named, key=lambda one: (one.tokens > rate * one.deadline_s, one.deadline_s, one.batch_id)):
        due += work.tokens
        is_late = due > rate * work.deadline_s + 1e-6
        outlook = outlooks[work.batch_id]
        assert 0.0 <= outlook.urgency <= 1.0
        if work.tokens > rate * work.deadline_s:
            assert LEAST_URGENCY <= outlook.urgency < 1.0
            assert outlook.laxity_s < 0
        elif is_late and work.tokens:
            assert outlook.urgency == 1.0
        if outlook.urgency == 0.0 and work.tokens:
            assert not is_late
    total = sum(work.tokens for work in named)
    assert max((outlook.end_s or 0.0 for outlook in outlooks.values()), default=0.0) == pytest.approx(total / rate)


# Batches that cannot make it any more.


def test_a_batch_that_is_lost_sinks_smoothly_to_one_place() -> None:
    urgencies = [find_lost_urgency(late_s, 1_000.0) for late_s in (0.0, 50.0, 99.0, 100.0, 5_000.0, math.inf)]
    assert urgencies == pytest.approx([1.0, 0.5, LEAST_URGENCY, LEAST_URGENCY, LEAST_URGENCY, LEAST_URGENCY])
    assert find_lost_urgency(15.0, 10.0) == 0.75
    assert find_lost_urgency(1.0, 0.0) == LEAST_URGENCY
    work = WorkLeft("a", 100.0, 2_000.0)
    lost = look_ahead([work], SteadyCapacity(10.0, 0.0), 0.0)["a"]
    assert lost == (200.0, -100.0, LEAST_URGENCY)
    assert share_out([demand_of(work, lost.urgency)], 64) == (("a", 1),)


def test_a_batch_that_is_about_lost_sinks_at_once_where_another_one_is_urgent() -> None:
    nearly, urgent = WorkLeft("nearly", 100.0, 1_010.0), WorkLeft("urgent", 200.0, 1_900.0)
    assert look_ahead([nearly], SteadyCapacity(10.0, 0.0), 0.0)["nearly"].urgency > 0.9
    outlooks = look_ahead([nearly, urgent], SteadyCapacity(10.0, 0.0), 0.0)
    assert outlooks["nearly"].urgency == LEAST_URGENCY
    assert outlooks["urgent"].urgency == pytest.approx(0.8)


def test_a_lost_batch_does_not_make_others_look_late() -> None:
    works = [WorkLeft("lost", 10.0, 1_000.0), WorkLeft("fine", 50.0, 100.0)]
    outlooks = look_ahead(works, SteadyCapacity(10.0, 0.0), 0.0)
    assert (outlooks["fine"].laxity_s, outlooks["fine"].urgency) == (40.0, 0.0)


def demand_of(work: WorkLeft, urgency: float) -> JobDemand:
    return JobDemand(work.batch_id, "m", 0.0, work.deadline_s, 1, tenant=work.tenant, urgency=urgency)


PLACES = 8


def serve(works: list[WorkLeft], rate: float, step_s: float = 1.0) -> dict[str, float]:
    """When each batch is done where late ones go first and what they leave goes by deadlines."""
    left = {work.batch_id: work for work in works}
    done: dict[str, float] = {}
    now_s = 0.0
    while left:
        outlooks = look_ahead(list(left.values()), SteadyCapacity(rate, now_s), now_s)
        demands = [demand_of(work, outlooks[work.batch_id].urgency) for work in left.values()]
        places = share_out(list_late(demands), PLACES)
        rest = PLACES - sum(most for _, most in places)
        budget = rate * step_s
        for batch_id, count in [*places, *((demand.batch_id, rest) for demand in order_jobs(demands))]:
            tokens = min(budget, count / PLACES * rate * step_s, left[batch_id].tokens)
            budget -= tokens
            left[batch_id] = left[batch_id]._replace(tokens=left[batch_id].tokens - tokens)
        now_s += step_s
        for batch_id in [name for name, work in left.items() if work.tokens <= 1e-6]:
            done[batch_id] = now_s
            del left[batch_id]
    return done


def test_a_lost_batch_does_not_make_an_urgent_one_late() -> None:
    lost, urgent = WorkLeft("lost", 100.0, 5_000.0), WorkLeft("urgent", 200.0, 1_800.0)
    ends = serve([lost, urgent], 10.0)
    assert ends["urgent"] <= 200.0
    assert ends["lost"] == pytest.approx(680.0, abs=1.0), "no capacity is left unused"


@given(st.lists(st.tuples(st.integers(100, 900), st.floats(1.0, 3.0)), max_size=4), st.floats(0.1, 0.9))
@settings(max_examples=60, deadline=None)
def test_no_lost_batch_makes_one_late_that_could_be_in_time(lost: list[tuple[int, float]], share: float) -> None:
    rate, deadline_s = 10.0, 400.0
    works = [WorkLeft(f"lost{number}", at_s, rate * at_s * factor + 1.0) for number, (at_s, factor) in enumerate(lost)]
    ends = serve([*works, WorkLeft("urgent", deadline_s, share * rate * deadline_s)], rate, 2.0)
    assert ends["urgent"] <= deadline_s + 4.0


# Several tenants.


def test_tenants_are_served_at_the_same_time_by_weight() -> None:
    works = [WorkLeft("a", 1e6, 300.0, "a"), WorkLeft("b", 1e6, 200.0, "b"), WorkLeft("a2", 1e6, 100.0, "a")]
    outlooks = look_ahead(works, SteadyCapacity(10.0, 0.0), 0.0, {"a": 3.0})
    assert [outlooks[name].end_s for name in ("a", "b", "a2")] == pytest.approx([40.0, 60.0, 400 / 7.5])


def test_what_goes_first_goes_before_all_turns() -> None:
    works = [WorkLeft("a", 1e6, 300.0, "a"), WorkLeft("late", 1e6, 200.0, "b", True), WorkLeft("b", 1e6, 50.0, "b")]
    outlooks = look_ahead(works, SteadyCapacity(10.0, 0.0), 0.0, first=["late"])
    assert [outlooks[name].end_s for name in ("late", "b", "a")] == pytest.approx([20.0, 30.0, 55.0])


def test_a_batch_without_a_promise_is_seen_at_its_tenant_s_share() -> None:
    works = [WorkLeft("a", 9e9, 3_000.0, "a"), WorkLeft("b", 60.0, 400.0, "b")]
    outlooks = look_ahead(works, SteadyCapacity(10.0, 0.0), 0.0)
    assert (outlooks["b"].laxity_s, outlooks["b"].urgency) == (-20.0, pytest.approx(1 - 20 / LAST_CONCERN_S))
    promised = [works[0], works[1]._replace(promised=True)]
    outlooks = look_ahead(promised, SteadyCapacity(10.0, 0.0), 0.0)
    assert (outlooks["b"].laxity_s, outlooks["b"].urgency) == (20.0, 0.0), "it can rise over all turns"


@given(
    st.lists(st.tuples(st.integers(1, 1_000), st.integers(0, 5_000), st.booleans()), max_size=10),
    st.floats(0.1, 10.0),
)
def test_for_one_tenant_neither_weights_nor_promises_count(works: list[tuple[int, int, bool]], weight: float) -> None:
    named = [WorkLeft(str(number), *work[:2], "a", work[2]) for number, work in enumerate(works)]
    plain = [WorkLeft(str(number), *work[:2]) for number, work in enumerate(works)]
    capacity = SteadyCapacity(7.0, 0.0)
    assert look_ahead(named, capacity, 0.0, {"a": weight}) == look_ahead(plain, capacity, 0.0)
