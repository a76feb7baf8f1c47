"""A week of changing online load: what was admitted is done in time, and little is refused that would have fitted."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import accumulate

import pytest

from conserve.policy.admission import Promise, find_earliest_deadline
from conserve.policy.capacity import DAY_S, INTERVAL_S, CapacityHistory, PromisedCapacity

START_S = 20_000 * DAY_S
WEEKS, PER_DAY = 2, round(DAY_S / INTERVAL_S)
QUANTILE, MARGIN = 0.1, 0.8
"""The defaults of the settings."""
SPARE = 1.5


@dataclass
class Week:
    """The first week is only looked at; in the second one batches come."""

    rates: list[float]
    generator: random.Random

    def __post_init__(self) -> None:
        self.done = list(accumulate((rate * INTERVAL_S for rate in self.rates), initial=0.0))

    def tokens(self, first: int, last: int) -> float:
        """What is really left over between two intervals."""
        return self.done[min(last, len(self.rates))] - self.done[first]


def make_week(seed: int) -> Week:
    """Harvest is what a day and a half-hourly noise, and now and then a rush of some hours, leave of 2,000 tokens/s."""
    generator = random.Random(seed)
    rates, noise, rush = [], 0.0, 0
    for number in range(WEEKS * 7 * PER_DAY):
        day = 0.5 - 0.4 * math.cos(2 * math.pi * (number % PER_DAY) / PER_DAY)
        weekend = 0.7 if number // PER_DAY % 7 >= 5 else 1.0
        noise = 0.9 * noise + generator.gauss(0, 0.02)
        rush = generator.randint(6, 24) if rush == 0 and generator.random() < 0.004 else max(0, rush - 1)
        load = min(0.97, max(0.03, day * weekend + noise + (0.15 if rush else 0.0)))
        rates.append(2_000 * (1 - load))
    return Week(rates, generator)


@dataclass
class Outcome:
    admitted: int = 0
    late: int = 0
    refused: int = 0
    would_have_fitted: int = 0


def live_through(week: Week) -> Outcome:
    history, promises, outcome = CapacityHistory(), [], Outcome()
    for number, rate in enumerate(week.rates):
        now_s = START_S + number * INTERVAL_S
        if number >= len(week.rates) / WEEKS and week.generator.random() < 0.06:
            tokens = week.generator.lognormvariate(math.log(3e6), 1.0)
            window = week.generator.choice([12, 24, 72, 288])
            promise = Promise(now_s + window * INTERVAL_S, tokens)
            capacity = PromisedCapacity(history, now_s, 2 * DAY_S, QUANTILE, MARGIN)
            earliest_s = find_earliest_deadline(promises, tokens, capacity, now_s)
            if earliest_s is not None and earliest_s <= promise.deadline_s:
                promises.append(promise)
                outcome.admitted += 1
            else:
                outcome.refused += 1
                outcome.would_have_fitted += fits_really(
                    week, number, [*promises, promise._replace(tokens=SPARE * tokens)]
                )
        left = rate * INTERVAL_S
        for promise in sorted(promises):
            done = min(left, promise.tokens)
            left -= done
            promises.remove(promise)
            if promise.tokens - done > 1e-6:
                promises.append(promise._replace(tokens=promise.tokens - done))
            elif now_s + INTERVAL_S > promise.deadline_s + 1e-6:
                outcome.late += 1
        history.observe(now_s, rate * INTERVAL_S, INTERVAL_S)
    return outcome


def fits_really(week: Week, number: int, promises: list[Promise]) -> bool:
    now_s, due = START_S + number * INTERVAL_S, 0.0
    for promise in sorted(promises):
        due += promise.tokens
        if due > week.tokens(number, number + round((promise.deadline_s - now_s) / INTERVAL_S)):
            return False
    return True


@pytest.mark.parametrize("seed", range(4))
def test_admitted_batches_are_in_time_and_few_are_refused_without_need(seed: int) -> None:
    outcome = live_through(make_week(seed))
    assert outcome.admitted > 30
    assert outcome.refused > 10, "there was more than enough room: this proves nothing"
    assert outcome.late == 0
    assert outcome.would_have_fitted <= 0.05 * (outcome.admitted + outcome.refused)
