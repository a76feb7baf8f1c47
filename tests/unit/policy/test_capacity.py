from __future__ import annotations

import math

import numpy as np

from conserve.policy.capacity import INTERVAL_S, INTERVALS_PER_DAY, CapacityHistory, SteadyCapacity

FIRST = 6_000_000


def test_what_is_seen_in_one_interval_is_added_up() -> None:
    history = CapacityHistory({FIRST: (100.0, 10.0)})
    history.observe(FIRST * INTERVAL_S + 20, 50.0, 5.0)
    history.observe(FIRST * INTERVAL_S + 20, 50.0, 0.0)
    assert history.rate(FIRST) == 10.0
    assert history.rate(FIRST + 1) is None
    assert history.seen_s == 15.0


def test_what_is_forgotten_is_said_once() -> None:
    history = CapacityHistory({FIRST: (1.0, 1.0), FIRST + 1: (1.0, 1.0)})
    later_s = (FIRST + 8 * INTERVALS_PER_DAY + 1) * INTERVAL_S
    assert history.observe(later_s, 1.0, 1.0) == [FIRST]
    assert history.observe(later_s, 1.0, 1.0) == []
    assert list(history.intervals) == [FIRST + 1, FIRST + 8 * INTERVALS_PER_DAY + 1]


def test_days_are_rows_and_what_is_not_known_has_no_number() -> None:
    history = CapacityHistory({FIRST - 1: (10.0, 5.0), FIRST - 2 * INTERVALS_PER_DAY: (9.0, 3.0)})
    assert history.count_days(FIRST) == 2
    days = history.list_days(FIRST, 2)
    assert days.shape == (2, INTERVALS_PER_DAY)
    assert (days[0, 0], days[1, -1]) == (3.0, 2.0)
    assert int(np.isnan(days).sum()) == 2 * INTERVALS_PER_DAY - 2


def test_rates_come_in_order_and_those_that_are_not_known_are_left_out() -> None:
    history = CapacityHistory({FIRST + 5: (10.0, 5.0), FIRST: (9.0, 3.0), FIRST + 1: (0.0, 0.0)})
    assert history.list_rates().tolist() == [3.0, 2.0]


def test_nothing_is_known_of_nothing() -> None:
    assert CapacityHistory().count_days(FIRST) == 0
    assert len(CapacityHistory().list_rates()) == 0


def test_a_steady_rate_goes_on_for_ever() -> None:
    steady = SteadyCapacity(10.0, 100.0)
    assert (steady.until(50.0), steady.until(110.0)) == (0.0, 100.0)
    assert (steady.when(0.0), steady.when(100.0)) == (100.0, 110.0)
    assert math.isfinite(steady.when(1e12) or math.inf)
