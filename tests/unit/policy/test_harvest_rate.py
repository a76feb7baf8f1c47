from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.harvest_rate import (
    LEAST_PROOF_S,
    UNPROVEN_SHARE,
    IterationCosts,
    Proof,
    find_possible_rate,
    measure_costs,
)
from conserve.policy.latency import IterationShape, LatencyModel

COSTS = IterationCosts(overhead_ms=20.0, prompt_token_ms=0.1, decode_ms=1.0)


def test_alone_an_iteration_has_a_token_of_each_request_and_the_prompts_that_keep_the_window_full() -> None:
    # 8 decodes, and prompts of 16 tokens for each of their tokens: 20 + 8 + 12.8 ms.
    assert find_possible_rate(COSTS, 8, 0, 100.0, 160, 10) == pytest.approx(8 * 17 / 40.8 * 1e3)


def test_beside_online_requests_it_takes_no_longer_than_those_can_wait() -> None:
    # 20 + 5 ms are for those who read, 25 ms are left of 50; offline work wants 8 + 12.8.
    assert find_possible_rate(COSTS, 8, 5, 50.0, 160, 10) == pytest.approx(8 * 17 / 45.8 * 1e3)
    assert find_possible_rate(COSTS, 80, 5, 50.0, 160, 10) == pytest.approx(25 / 208 * 80 * 17 / 50 * 1e3)
    assert find_possible_rate(COSTS, 8, 40, 50.0) == 0


def test_nothing_is_possible_with_a_shut_window_or_where_nothing_is_known() -> None:
    assert find_possible_rate(COSTS, 0, 0, 100.0) == 0
    assert find_possible_rate(IterationCosts(), 8, 0, 100.0) == 0


@given(
    window=st.integers(1, 64),
    online=st.integers(0, 100),
    tbt_ms=st.floats(1, 1_000) | st.just(math.inf),
    prompt=st.floats(0, 10_000),
    output=st.floats(0, 10_000),
)
def test_more_online_requests_never_leave_more(
    window: int, online: int, tbt_ms: float, prompt: float, output: float
) -> None:
    rates = [find_possible_rate(COSTS, window, online + more, tbt_ms, prompt, output) for more in (0, 1, 10)]
    assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
    assert rates[0] >= rates[1] * (1 - 1e-9)
    assert rates[1] >= rates[2] * (1 - 1e-9)


def test_costs_come_from_a_model_that_is_ready() -> None:
    model = LatencyModel()
    assert not measure_costs(model).known
    for tokens in (8, 32, 64, 128, 256, 512):
        for decodes in (1, 2, 4, 8, 16):
            shape = IterationShape().add_prefill(tokens, 0).add_decodes(decodes, decodes * 1_000)
            model.observe(shape, 10 + 0.1 * tokens + decodes)
            model.observe(IterationShape().add_decodes(decodes, decodes * 1_000), 10.0 + decodes)
    costs = measure_costs(model)
    assert costs.known
    assert costs.overhead_ms == pytest.approx(11, rel=0.2)
    assert costs.prompt_token_ms == pytest.approx(0.1, rel=0.2)
    assert costs.decode_ms == pytest.approx(1.0, rel=0.2)


def test_a_model_s_word_counts_for_what_it_proved_to_be_worth() -> None:
    assert Proof().share == UNPROVEN_SHARE
    assert Proof().add(10, 100, LEAST_PROOF_S - 1).share == UNPROVEN_SHARE
    assert Proof().add(30, 100, LEAST_PROOF_S).share == pytest.approx(0.3)
    assert Proof().add(300, 100, LEAST_PROOF_S).share == 1
    old = Proof().add(0, 100, 3_600)
    for _ in range(24):
        old = old.add(100, 100, 3_600)
    assert old.share > 0.98
