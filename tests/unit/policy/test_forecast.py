from __future__ import annotations

import math
import random

import pytest

from conserve.policy.capacity import DAY_S, HISTORY_DAYS, INTERVAL_S, CapacityHistory
from conserve.policy.forecast import PromisedCapacity

NOW_S = 20_000 * DAY_S + 9 * 3_600.0


def rate_at(at_s: float) -> float:
    """Much at night, little at noon."""
    return 1_000 * (1 + math.cos(2 * math.pi * (at_s % DAY_S) / DAY_S)) + 50


def fill(days: float, factor: float = 1.0) -> CapacityHistory:
    history = CapacityHistory()
    at_s = NOW_S - days * DAY_S
    while at_s < NOW_S:
        history.observe(at_s, factor * rate_at(at_s) * 60, 60)
        at_s += 60
    return history


def expect(start_s: float, end_s: float) -> float:
    steps = 2_000
    step_s = (end_s - start_s) / steps
    return sum(rate_at(start_s + (number + 0.5) * step_s) for number in range(steps)) * step_s


@pytest.mark.parametrize("hours", [0.5, 3, 12, 24, 60])
def test_it_follows_the_time_of_day(hours: float) -> None:
    promised = PromisedCapacity(fill(3), NOW_S, 4 * DAY_S, quantile=0.1)
    end_s = NOW_S + hours * 3_600
    assert promised.until(end_s) == pytest.approx(expect(NOW_S, end_s), rel=0.03)
    assert promised.when(promised.until(end_s)) == pytest.approx(end_s, abs=1.0)


def test_a_margin_is_kept_back() -> None:
    whole, part = (PromisedCapacity(fill(2), NOW_S, DAY_S, 0.1, margin) for margin in (1.0, 0.7))
    assert part.until(NOW_S + 7_200) == pytest.approx(0.7 * whole.until(NOW_S + 7_200))


def test_a_bad_day_lowers_what_is_promised_but_not_what_is_expected() -> None:
    history = fill(5)
    bad = CapacityHistory(
        {
            number: (tokens * (0.2 if NOW_S - 3 * DAY_S <= number * INTERVAL_S < NOW_S - 2 * DAY_S else 1.0), seconds)
            for number, (tokens, seconds) in history.intervals.items()
        }
    )
    low, middle = (PromisedCapacity(bad, NOW_S, DAY_S, quantile) for quantile in (0.01, 0.5))
    good = PromisedCapacity(history, NOW_S, DAY_S, 0.01)
    for hours in (1, 24):
        end_s = NOW_S + hours * 3_600
        assert low.until(end_s) < 0.5 * good.until(end_s)
        assert 0.8 * good.until(end_s) < middle.until(end_s) < 1.3 * good.until(end_s)


def test_what_today_has_less_than_other_days_is_missed_for_about_an_hour() -> None:
    history = fill(4)
    low = CapacityHistory(
        {
            number: (tokens - (300.0 * seconds if number * INTERVAL_S >= NOW_S - 1_800 else 0.0), seconds)
            for number, (tokens, seconds) in history.intervals.items()
        }
    )
    usual, less = (PromisedCapacity(one, NOW_S, DAY_S, 0.5) for one in (history, low))
    missing = [usual.until(NOW_S + hours * 3_600) - less.until(NOW_S + hours * 3_600) for hours in (0.25, 1, 12)]
    assert 100 * 900 < missing[0] < 320 * 900
    assert missing[0] < missing[1] < missing[2] < 320 * 3_600 + 100 * 43_200


def test_with_little_history_the_worst_time_counts_and_with_less_nothing_is_promised() -> None:
    promised = PromisedCapacity(fill(0.1), NOW_S, DAY_S, quantile=0.1)
    worst = expect(NOW_S - 3_600, NOW_S)  # It has become less all the time.
    assert promised.until(NOW_S + 3_600) == pytest.approx(worst, rel=0.1)
    assert promised.until(NOW_S + DAY_S) < 1.2 * 24 * worst
    with pytest.raises(ValueError, match="1800 are needed"):
        PromisedCapacity(fill(0.01), NOW_S, DAY_S, quantile=0.1)


def test_one_bad_interval_of_a_short_history_is_not_every_hour() -> None:
    numbers = range(round(NOW_S // INTERVAL_S) - 48, round(NOW_S // INTERVAL_S))
    history = CapacityHistory({number: (0.0 if number % 40 == 0 else 300.0, 300.0) for number in numbers})
    promised = PromisedCapacity(history, NOW_S, DAY_S, quantile=0.01)
    assert promised.until(NOW_S + 300) == pytest.approx(0.0, abs=160)
    assert promised.until(NOW_S + 6 * 3_600) > 0.85 * 6 * 3_600


def test_beyond_the_horizon_there_is_no_more() -> None:
    promised = PromisedCapacity(fill(2), NOW_S, 3_600, quantile=0.1)
    assert promised.until(NOW_S + DAY_S) == promised.until(NOW_S + 2 * DAY_S)
    assert promised.when(promised.until(NOW_S + DAY_S) + 1) is None
    assert promised.when(0) == NOW_S
    assert promised.until(NOW_S - 5) == 0


def test_what_is_promised_never_gets_less_with_time() -> None:
    generator = random.Random(1)
    history = CapacityHistory()
    for number in range(HISTORY_DAYS * 288):
        history.observe(NOW_S - number * INTERVAL_S, generator.uniform(0, 500), generator.uniform(1, 300))
    promised = PromisedCapacity(history, NOW_S, 3 * DAY_S, quantile=0.3)
    values = [promised.until(NOW_S + minutes * 60) for minutes in range(0, 4_000, 7)]
    assert values == sorted(values)
    assert values[-1] > 0


def test_old_days_are_forgotten() -> None:
    history = fill(HISTORY_DAYS + 3)
    assert min(history.intervals) * INTERVAL_S >= NOW_S - (HISTORY_DAYS + 1) * DAY_S - INTERVAL_S
    assert history.seen_s == pytest.approx((HISTORY_DAYS + 1) * DAY_S, rel=0.01)
