from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.admission import Promise, decide, find_earliest_deadline


class Steady:
    """So many tokens a second, for ever or up to a horizon."""

    def __init__(self, rate: float, now_s: float = 0.0, horizon_s: float = math.inf) -> None:
        self.rate, self.now_s, self.horizon_s = rate, now_s, horizon_s

    def until(self, at_s: float) -> float:
        return self.rate * min(max(0.0, at_s - self.now_s), self.horizon_s)

    def when(self, tokens: float) -> float | None:
        at_s = tokens / self.rate
        return self.now_s + at_s if at_s <= self.horizon_s else None


def test_alone_work_takes_as_long_as_it_takes() -> None:
    assert find_earliest_deadline([], 100, Steady(10), 0.0) == 10
    assert find_earliest_deadline([], 100, Steady(10, now_s=50), 50.0) == 60


def test_what_was_promised_comes_first_only_where_it_is_due_first() -> None:
    # 50 tokens by second 5 leave no room before it; 50 by second 100 leave plenty.
    assert find_earliest_deadline([Promise(5, 50)], 10, Steady(10), 0.0) == 6
    assert find_earliest_deadline([Promise(100, 50)], 10, Steady(10), 0.0) == 1
    # Both fit before second 100, but not 951.
    assert find_earliest_deadline([Promise(100, 50)], 950, Steady(10), 0.0) == 95
    assert find_earliest_deadline([Promise(100, 50)], 951, Steady(10), 0.0) == pytest.approx(100.1)


def test_a_promise_that_is_broken_already_stands_in_the_way_until_its_deadline() -> None:
    assert find_earliest_deadline([Promise(5, 70)], 10, Steady(10), 0.0) == 8


def test_beyond_the_horizon_nothing_is_promised() -> None:
    assert find_earliest_deadline([], 101, Steady(10, horizon_s=10), 0.0) is None
    assert find_earliest_deadline([Promise(9, 80)], 21, Steady(10, horizon_s=10), 0.0) is None


def can_be_kept(promises: list[Promise], rate: float) -> bool:
    due = itertools.accumulate(promise.tokens for promise in sorted(promises))
    return all(work <= rate * promise.deadline_s + 1e-6 for work, promise in zip(due, sorted(promises), strict=True))


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 200)), max_size=8),
    st.integers(1, 300),
    st.integers(1, 20),
)
def test_no_promise_is_broken_and_no_earlier_deadline_would_do(
    work: list[tuple[int, int]], tokens: int, rate: int
) -> None:
    promises: list[Promise] = []
    for deadline_s, size in work:
        if can_be_kept([*promises, Promise(deadline_s, size)], rate):
            promises.append(Promise(deadline_s, size))
    earliest_s = find_earliest_deadline(promises, tokens, Steady(rate), 0.0)
    assert earliest_s is not None
    assert can_be_kept([*promises, Promise(earliest_s, tokens)], rate)
    for sooner_s in (earliest_s - 0.01, earliest_s / 2, *(deadline_s for deadline_s, _ in promises)):
        if 0 < sooner_s < earliest_s - 1e-3:
            assert not can_be_kept([*promises, Promise(sooner_s, tokens)], rate)


def test_the_decision_names_the_earliest_deadline() -> None:
    promises = [Promise(5, 50)]
    assert decide(promises, Promise(6, 10), Steady(10), 0.0) == (True, 6)
    assert decide(promises, Promise(5.9, 10), Steady(10), 0.0) == (False, 6)
    assert decide(promises, Promise(50, 100), Steady(10, horizon_s=12), 0.0) == (False, None)


def test_work_done_in_that_order_keeps_what_was_admitted() -> None:
    """Batches come for a day; each is admitted at its own deadline if that fits."""
    generator = random.Random(3)
    rate, promises, late = 100.0, [], 0
    for now_s in range(0, 86_400, 60):
        left = rate * 60
        for promise in sorted(promises):
            done = min(left, promise.tokens)
            left -= done
            promises.remove(promise)
            if promise.tokens - done > 1e-6:
                promises.append(promise._replace(tokens=promise.tokens - done))
                late += promise.deadline_s < now_s
        tokens, deadline_s = generator.uniform(1_000, 200_000), now_s + generator.uniform(600, 20_000)
        earliest_s = find_earliest_deadline(promises, tokens, Steady(rate, now_s=now_s), now_s)
        if earliest_s is not None and earliest_s <= deadline_s:
            promises.append(Promise(deadline_s, tokens))
    assert late == 0
