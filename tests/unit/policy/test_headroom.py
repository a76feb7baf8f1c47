from __future__ import annotations

from itertools import pairwise

import pytest

from conserve.policy.harvest_rate import IterationCosts
from conserve.policy.headroom import find_headroom
from conserve.policy.online_trend import OnlineTrend
from conserve.policy.replica_capacity import Headroom
from conserve.policy.slo_attainment import LEAST_TOKENS, SloAttainment

COSTS = IterationCosts(overhead_ms=8.0, prompt_token_ms=0.03, decode_ms=0.04)


def headroom_at(online: float, tbt_slo_ms: float = 50.0) -> Headroom:
    found = find_headroom(COSTS, online, tbt_slo_ms, 4_000, 128)
    assert found is not None
    return found


def test_an_idle_replica_computes_efficient_iterations() -> None:
    found = headroom_at(0.0)
    assert found.requests == pytest.approx((80.0 - 8.0) / (0.04 + 4_000 / 128 * 0.03))
    assert found.tokens_per_s == pytest.approx(found.requests * (1 + 4_000 / 128) / 0.080)


def test_headroom_falls_with_online_load_and_a_tighter_objective_to_nothing() -> None:
    rates = [headroom_at(online).tokens_per_s for online in (0.0, 0.5, 1.0, 10.0, 100.0, 1_000.0, 5_000.0)]
    assert all(after < before for before, after in pairwise(rates[:-1]))
    assert headroom_at(5_000.0) == Headroom(0.0, 0.0)
    assert headroom_at(10.0, 20.0).tokens_per_s < headroom_at(10.0, 50.0).tokens_per_s


def test_without_costs_there_is_none() -> None:
    assert find_headroom(IterationCosts(), 0.0, 50.0) is None


def test_a_rising_rate_is_expected_to_rise_and_a_steady_one_to_stay() -> None:
    trend = OnlineTrend()
    assert (trend.rate_per_s, trend.forecast_per_s, trend.expected_running) == (0.0, 0.0, 0.0)
    for step in range(1_200):
        trend.observe(step * 0.25, step, 6)
    assert trend.rate_per_s == pytest.approx(4.0, rel=0.01)
    assert trend.forecast_per_s == pytest.approx(4.0, rel=0.02)
    assert trend.expected_running == pytest.approx(6.0, rel=0.02)
    requests = 1_200.0
    for step in range(1_200, 1_260):
        requests += 1.0 + (step - 1_200) / 60
        trend.observe(step * 0.25, int(requests), 6)
    assert trend.rate_per_s < trend.forecast_per_s <= 2 * trend.rate_per_s
    for step in range(1_260, 1_300):
        trend.observe(step * 0.25, int(requests), 0)
    assert trend.forecast_per_s < trend.rate_per_s


def test_counters_that_begin_again_are_no_negative_rate() -> None:
    trend = OnlineTrend()
    trend.observe(0.0, 1_000, 0)
    trend.observe(1.0, 3, 0)
    assert trend.rate_per_s == 0.0


def test_attainment_is_that_of_the_latest_tokens() -> None:
    attainment = SloAttainment()
    attainment.observe(0.0, LEAST_TOKENS - 1, 0.0)
    assert attainment.share is None
    attainment.observe(1.0, 100.0, 10.0)
    assert attainment.share == pytest.approx(0.9, abs=0.005)
    attainment.observe(200.0, 200.0, 10.0)
    assert attainment.share == pytest.approx(1.0, abs=0.005)
    attainment.observe(201.0, 50.0, 50.0)  # The engine has begun anew.
    assert attainment.share == pytest.approx(2 / 3, abs=0.02)
    attainment.observe(600.0, 50.0, 50.0)
    assert attainment.share is None, "nothing came lately"
