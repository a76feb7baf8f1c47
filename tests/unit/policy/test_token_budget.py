from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.latency import IterationShape, LatencyModel
from conserve.policy.token_budget import (
    ARRIVAL_QUANTILE,
    ARRIVALS_KEPT,
    EFFICIENT_SHARE,
    IDLE_S,
    SMALLEST_WAIT_OVERHEADS,
    SMALLEST_WAIT_SHARE,
    ArrivalGuard,
    PromptDemand,
    limit_efficient_ms,
    limit_iteration_ms,
    limit_prompts_ms,
    size_offline_pass,
)

FIXED_MS = 20.0
TOKEN_MS = 0.5
DECODE_MS = 1.0


def time_ms(shape: IterationShape) -> float:
    return FIXED_MS + TOKEN_MS * shape.prefill_tokens + DECODE_MS * shape.decode_sequences


@pytest.fixture(scope="module")
def model() -> LatencyModel:
    """A model that has learnt an engine of the three costs above."""
    learnt = LatencyModel()
    for step in range(400):
        shape = IterationShape()
        if step % 3:
            shape = shape.add_prefill(1 + 37 * step % 500, 0)
        for _ in range(step % 5 if step % 3 else 1 + step % 5):
            shape = shape.add_decode(100)
        learnt.observe(shape, time_ms(shape))
    assert learnt.safety_factor() < 1.02
    return learnt


def test_without_objectives_there_is_no_limit() -> None:
    assert limit_iteration_ms(10.0, math.inf, [], math.inf, 1.2) == math.inf


def test_the_next_token_of_a_decoding_request_limits() -> None:
    assert limit_iteration_ms(10.0, 10.1, [], math.inf, 1.0) == pytest.approx(100)


def test_the_first_token_of_a_prompt_limits_less_what_comes_later() -> None:
    prompts = [PromptDemand(deadline_s=10.5, rest_ms=0.0), PromptDemand(deadline_s=10.6, rest_ms=200.0)]
    assert limit_iteration_ms(10.0, math.inf, prompts, math.inf, 1.0) == pytest.approx(400)


def test_arrivals_to_come_limit() -> None:
    assert limit_iteration_ms(10.0, 11.0, [], 70.0, 1.0) == pytest.approx(70)


def test_uncertain_predictions_get_a_margin() -> None:
    certain = limit_iteration_ms(10.0, 10.12, [], math.inf, 1.0)
    assert limit_iteration_ms(10.0, 10.12, [], math.inf, 1.2) == pytest.approx(certain / 1.2)
    prompts = [PromptDemand(deadline_s=10.5, rest_ms=100.0)]
    assert limit_iteration_ms(10.0, math.inf, prompts, math.inf, 1.25) == pytest.approx((500 - 125) / 1.25)


def test_a_missed_objective_leaves_no_time() -> None:
    assert limit_iteration_ms(10.0, 9.9, [], math.inf, 1.0) == 0
    assert limit_iteration_ms(10.0, math.inf, [PromptDemand(10.1, 300.0)], math.inf, 1.0) == 0


@given(
    due_ms=st.floats(-1e3, 1e4),
    deadlines=st.lists(st.tuples(st.floats(-1e3, 1e4), st.floats(0, 1e4)), max_size=5),
    arrival_ms=st.floats(0, 1e4),
    safety=st.floats(1, 1.5),
)
def test_the_limit_keeps_every_objective(
    due_ms: float, deadlines: list[tuple[float, float]], arrival_ms: float, safety: float
) -> None:
    prompts = [PromptDemand(deadline / 1e3, rest) for deadline, rest in deadlines]
    limit = limit_iteration_ms(0.0, due_ms / 1e3, prompts, arrival_ms, safety)
    assert limit >= 0
    if limit > 0:
        longest = limit * safety
        assert longest <= due_ms + 1e-6
        assert longest <= arrival_ms + 1e-6
        assert all(longest + rest * safety <= deadline + 1e-6 for deadline, rest in deadlines)


@pytest.mark.parametrize(
    ("available_ms", "limit_ms"), [(200.0, 200.0), (61.0, 61.0), (50.0, 60.0), (0.0, 60.0), (-300.0, 60.0)]
)
def test_prompts_leave_decodes_their_time_but_get_half_of_an_iteration(available_ms: float, limit_ms: float) -> None:
    assert limit_prompts_ms(available_ms, decodes_ms=30.0) == pytest.approx(limit_ms)


def test_the_guard_waits_for_a_first_arrival(model: LatencyModel) -> None:
    assert ArrivalGuard().limit_ms(5.0, [1_000], model) == math.inf


def test_the_guard_leaves_time_for_a_long_prompt_of_those_seen(model: LatencyModel) -> None:
    guard = ArrivalGuard()
    for number in range(100):
        guard.observe(5.0, 400 if number >= 94 else 100, 0)
    assert guard.typical_tokens == 400
    own_ms = model.predict_ms(IterationShape().add_prefill(400, 0)) * model.safety_factor()
    assert guard.limit_ms(5.0, [1_000], model) == pytest.approx(1_000 - own_ms)
    assert guard.limit_ms(5.0, [math.inf], model) == math.inf


def test_the_guard_forgets_prompts_of_long_ago(model: LatencyModel) -> None:
    guard = ArrivalGuard()
    for tokens in [900] * 200 + [50] * 128:
        guard.observe(5.0, tokens, 0)
    assert guard.typical_tokens == 50
    assert guard.limit_ms(5.0 + IDLE_S - 0.1, [1_000], model) < math.inf
    assert guard.limit_ms(5.0 + IDLE_S, [1_000], model) == math.inf


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), min_size=1, max_size=400))
def test_the_guard_knows_percentile_and_classes_of_the_last_ones(seen: list[tuple[int, int]]) -> None:
    guard = ArrivalGuard()
    for second, (tokens, request_class) in enumerate(seen):
        guard.observe(float(second), tokens, request_class)
    kept = seen[-ARRIVALS_KEPT:]
    ordered = sorted(tokens for tokens, _ in kept)
    slos_ms = [100.0, 300.0, 200.0, 400.0]

    assert guard.typical_tokens == ordered[math.ceil(ARRIVAL_QUANTILE * len(ordered)) - 1]
    assert guard.ttft_slo_ms(len(seen), slos_ms) == min(slos_ms[request_class] for _, request_class in kept)
    assert guard.arrivals_per_s(len(seen)) == (len(kept) - 1) / len(kept)


def test_the_guard_waits_for_those_classes_that_it_has_seen(model: LatencyModel) -> None:
    guard = ArrivalGuard()
    guard.observe(5.0, 100, 1)
    one = guard.limit_ms(5.0, [100, 1_000, 9_000], model)
    guard.observe(6.0, 100, 7)
    assert guard.limit_ms(6.0, [100, 1_000, 9_000], model) == one == guard.limit_ms(6.0, [1_000], model)
    guard.observe(7.0, 100, 0)
    assert guard.limit_ms(7.0, [100, 1_000, 9_000], model) < one


def test_the_guard_always_leaves_a_share_of_the_objective(model: LatencyModel) -> None:
    guard = ArrivalGuard()
    guard.observe(5.0, 100_000, 0)
    assert guard.limit_ms(5.0, [5_000], model) == SMALLEST_WAIT_SHARE * 5_000
    # An arrival waits for an iteration of those who decode in any case.
    assert guard.limit_ms(5.0, [200], model) == SMALLEST_WAIT_OVERHEADS * model.overhead_ms()


def test_a_pass_without_a_limit_is_a_full_batch(model: LatencyModel) -> None:
    assert size_offline_pass(model, IterationShape(), math.inf, 2_048) == 2_048
    assert size_offline_pass(model, IterationShape(), math.inf, 0) == 0


def test_a_pass_keeps_to_its_limit(model: LatencyModel) -> None:
    tokens = size_offline_pass(model, IterationShape(), 60.0, 2_048)
    assert model.predict_ms(IterationShape().add_prefill(tokens, 0)) <= 60.0
    assert model.predict_ms(IterationShape().add_prefill(tokens + 1, 0)) > 60.0


@pytest.mark.parametrize("decodes", [0, 8])
def test_a_pass_is_no_longer_than_efficient(model: LatencyModel, decodes: int) -> None:
    base = IterationShape()
    for _ in range(decodes):
        base = base.add_decode(100)
    tokens = size_offline_pass(model, base, limit_efficient_ms(model), 2_048)
    assert tokens < 2_048
    efficient_ms = (FIXED_MS + DECODE_MS) / (1 - EFFICIENT_SHARE)
    assert limit_efficient_ms(model) == pytest.approx(efficient_ms, rel=0.01)
    assert time_ms(base.add_prefill(tokens, 0)) == pytest.approx(efficient_ms, rel=0.01)


def test_overhead_is_that_of_the_smallest_iteration_measured_however_bad_the_fit() -> None:
    model = LatencyModel()
    for step in range(200):
        model.observe(IterationShape().add_prefill(100 + step % 50, 0).add_decode(10), 30.0 + step % 7)
    assert model.overhead_ms() >= 30.0
