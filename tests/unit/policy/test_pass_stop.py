"""When a pass gives way, and how large it may be."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.latency import IterationShape, LatencyModel
from conserve.policy.pass_stop import (
    PassProgress,
    Slack,
    can_bear_mixed,
    choose_pass_tokens,
    expected_useful_rate,
    find_slack,
    is_time_up,
    limit_stoppable_ms,
    must_stop,
)


def at_layer(layer: int, *, now_s: float = 10.0, first: int = 0, predicted_end_s: float = 12.0) -> PassProgress:
    return PassProgress(10.0, now_s, first, layer, 30, predicted_end_s)


def test_a_pass_ends_when_it_was_predicted_to_until_its_own_layers_say_more() -> None:
    assert at_layer(0).end_s == 12.0
    assert at_layer(1, now_s=10.5).end_s == 12.0
    assert at_layer(10, now_s=11.0).end_s == pytest.approx(13.0)
    assert at_layer(20, now_s=10.5, first=10).end_s == pytest.approx(11.0)


def test_a_pass_is_stopped_if_its_end_comes_too_late() -> None:
    assert must_stop("slo", at_layer(0), due_s=12.4, first_token_ms=500)
    assert not must_stop("slo", at_layer(0), due_s=12.6, first_token_ms=500)
    assert not must_stop("slo", at_layer(0), due_s=math.inf, first_token_ms=500)
    # It is faster than was predicted.
    assert not must_stop("slo", at_layer(15, now_s=10.5), due_s=11.6, first_token_ms=500)


def test_the_operator_can_have_it_stopped_always_or_never() -> None:
    assert must_stop("always", at_layer(29), due_s=math.inf, first_token_ms=0)
    assert not must_stop("never", at_layer(0), due_s=0, first_token_ms=0)


def test_a_stoppable_pass_is_as_long_as_an_arrival_can_wait_for_two_layers() -> None:
    assert limit_stoppable_ms(100, 1_000, 30) == 1_500
    assert limit_stoppable_ms(100, 1_000, 1) == 100
    assert limit_stoppable_ms(800, 1_000, 30) == 1_500, "a stop takes no more than a tenth of the objective"
    assert limit_stoppable_ms(math.inf, math.inf, 30) == math.inf


def test_those_who_decode_leave_time_for_a_slice() -> None:
    slack = find_slack(10.0, 10.3, tbt_slo_ms=300, decodes_ms=60, overhead_ms=80)
    assert slack == Slack(pytest.approx(10.3 - 0.060 - 0.015), is_enough=True, is_regular=True)
    later = find_slack(10.2, 10.3, tbt_slo_ms=300, decodes_ms=60, overhead_ms=40)
    assert later is not None
    assert (later.is_enough, later.is_regular) == (False, True)
    tight = find_slack(10.0, 10.12, tbt_slo_ms=120, decodes_ms=60, overhead_ms=40)
    assert tight is not None
    assert (tight.is_enough, tight.is_regular) == (False, False)
    assert find_slack(10.0, math.inf, math.inf, 60, 40) is None


def test_prompts_ride_with_those_who_decode_where_arrivals_can_bear_it() -> None:
    assert can_bear_mixed(spare_ms=200, tbt_slo_ms=200, overhead_ms=40)
    assert not can_bear_mixed(spare_ms=199, tbt_slo_ms=200, overhead_ms=40)
    assert can_bear_mixed(spare_ms=240, tbt_slo_ms=2_000, overhead_ms=40), "six of the smallest iterations"
    assert not can_bear_mixed(spare_ms=239, tbt_slo_ms=2_000, overhead_ms=40)
    assert not can_bear_mixed(spare_ms=-50, tbt_slo_ms=300, overhead_ms=40)
    assert can_bear_mixed(spare_ms=math.inf, tbt_slo_ms=300, overhead_ms=40), "nobody is expected"


def test_a_slice_is_no_longer_than_efficient() -> None:
    slack = find_slack(10.0, 70.0, tbt_slo_ms=60_000, decodes_ms=60, overhead_ms=40)
    assert slack is not None
    assert slack.until_s == pytest.approx(10.0 + 10 * 0.040)


def test_a_slice_ends_before_a_layer_that_would_take_too_long() -> None:
    progress = at_layer(10, now_s=11.0)  # 0.1 s a layer
    assert not is_time_up(progress, 11.11)
    assert is_time_up(progress, 11.09)


def test_the_useful_rate_is_that_of_a_simulation() -> None:
    generator = random.Random(1)
    tokens, duration_s, rate, stop_s = 1_000, 0.8, 1.5, 0.05
    done = spent_s = 0.0
    for _ in range(200_000):
        arrival_s = generator.expovariate(rate)
        if arrival_s >= duration_s:
            done += tokens
            spent_s += duration_s
        else:
            spent_s += arrival_s + stop_s
    assert expected_useful_rate(tokens, duration_s, rate, stop_s) == pytest.approx(done / spent_s, rel=0.01)


@given(st.floats(1, 1e5), st.floats(1e-3, 1e3), st.floats(0, 1e3), st.floats(0, 10))
def test_the_useful_rate_is_never_above_that_without_arrivals(
    tokens: float, duration_s: float, arrivals_per_s: float, stop_s: float
) -> None:
    rate = expected_useful_rate(tokens, duration_s, arrivals_per_s, stop_s)
    assert 0 <= rate <= tokens / duration_s * (1 + 1e-6)


def test_passes_that_cannot_be_continued_get_smaller_with_more_arrivals() -> None:
    model = LatencyModel()
    for tokens in (16, 64, 256, 1_024) * 12:
        model.observe(IterationShape().add_prefill(tokens, 0), 30 + 1.5 * tokens)
        model.observe(IterationShape(decode_sequences=4, decode_context=4 * tokens), 35)
    assert model.ready
    sizes = [choose_pass_tokens(model, IterationShape(), 2_048, rate, 0.01) for rate in (0, 0.01, 0.5, 2, 10)]
    assert sizes[0] == 2_048
    assert sizes == sorted(sizes, reverse=True)
    assert 16 <= sizes[-1] < sizes[1]
    assert choose_pass_tokens(model, IterationShape(), 0, 1.0, 0.01) == 0
    assert choose_pass_tokens(model, IterationShape(), 10, 1.0, 0.01) == 10
