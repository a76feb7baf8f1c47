from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.capacity import SteadyCapacity
from conserve.policy.laxity import FIRST_CONCERN, WorkLeft, find_urgency, look_ahead


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
    for work in sorted(named, key=lambda one: (one.deadline_s, one.batch_id)):
        due += work.tokens
        is_late = due > rate * work.deadline_s + 1e-6
        outlook = outlooks[work.batch_id]
        assert 0.0 <= outlook.urgency <= 1.0
        if is_late and work.tokens:
            assert outlook.urgency == 1.0
        if outlook.urgency == 0.0 and work.tokens:
            assert not is_late
    assert max((outlook.end_s or 0.0 for outlook in outlooks.values()), default=0.0) == pytest.approx(due / rate)
