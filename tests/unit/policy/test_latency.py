from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve.policy.latency import FEATURES, IterationShape, LatencyError, LatencyModel, LatencyProfile

PLANTED = {
    "iteration": 35.0,
    "prefill_tokens": 1.4,
    "prefill_attention": 0.0005,
    "prefill_sequences": 2.0,
    "decode_sequences": 1.9,
    "decode_context": 0.002,
}
STEP = IterationShape(decode_sequences=1, decode_context=100)


def planted_ms(shape: IterationShape) -> float:
    return (
        PLANTED["iteration"]
        + PLANTED["prefill_tokens"] * shape.prefill_tokens
        + PLANTED["prefill_attention"] * shape.prefill_attention
        + PLANTED["prefill_sequences"] * shape.prefill_sequences
        + PLANTED["decode_sequences"] * shape.decode_sequences
        + PLANTED["decode_context"] * shape.decode_context
    )


def random_shape(generator: random.Random) -> IterationShape:
    shape = IterationShape()
    kind = generator.random()
    if kind < 0.7:
        for _ in range(generator.choice([1, 2, 4, 8, 16])):
            shape = shape.add_decode(generator.randrange(20, 2000))
    if kind > 0.4:
        for _ in range(generator.choice([1, 1, 1, 3])):
            shape = shape.add_prefill(generator.choice([8, 30, 100, 250, 512]), generator.choice([0, 0, 512, 1500]))
    return shape


def train(
    model: LatencyModel,
    iterations: int,
    *,
    slowdown: float = 1.0,
    noise: float = 0.0,
    outliers: float = 0.0,
    seed: int = 0,
    make: Callable[[random.Random], IterationShape] = random_shape,
) -> LatencyModel:
    generator = random.Random(seed)
    for _ in range(iterations):
        shape = make(generator)
        measured_ms = planted_ms(shape) * slowdown * math.exp(generator.gauss(0, noise))
        if generator.random() < outliers:
            measured_ms *= 10
        model.observe(shape, measured_ms)
    return model


def worst_error(model: LatencyModel, slowdown: float = 1.0) -> float:
    generator = random.Random(99)
    shapes = [random_shape(generator) for _ in range(200)]
    return max(abs(model.predict_ms(shape) / (planted_ms(shape) * slowdown) - 1) for shape in shapes)


counts = st.integers(0, 4096)
shapes = st.builds(
    IterationShape,
    prefill_tokens=counts,
    prefill_attention=st.floats(0, 1e8),
    prefill_sequences=counts,
    decode_sequences=counts,
    decode_context=st.integers(0, 10**7),
)
times = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(1, 1000), st.just(40.0))


def test_shapes_add_up() -> None:
    shape = IterationShape().add_prefill(10, 0).add_prefill(4, 100).add_decode(7).add_decode(9)
    assert shape == IterationShape(14, 10 * 5 + 4 * 102, 2, 2, 16)
    assert shape.tokens == 16


def test_recovers_planted_costs_under_noise_and_outliers() -> None:
    model = train(LatencyModel(), 2000, noise=0.1, outliers=0.05)
    assert worst_error(model) < 0.1
    for name, weight in (("iteration", 0.15), ("prefill_tokens", 0.15), ("prefill_attention", 0.3)):
        assert model.coefficients_ms[name] == pytest.approx(PLANTED[name], rel=weight)
    assert model.error().median < 0.1


def test_is_exact_without_noise() -> None:
    model = train(LatencyModel(), 400)
    assert worst_error(model) < 0.01
    assert model.coefficients_ms == pytest.approx(PLANTED, rel=0.02)
    assert model.safety_factor() < 1.02


@given(st.lists(st.tuples(shapes, times), max_size=80), shapes)
@settings(max_examples=60, deadline=None)
def test_is_never_negative_or_undefined(observed: list[tuple[IterationShape, float]], asked: IterationShape) -> None:
    model = LatencyModel()
    for shape, measured_ms in observed:
        model.observe(shape, measured_ms)
        assert 0 < model.predict_ms(asked) < math.inf
        assert 1 <= model.safety_factor() <= 1.5
    assert all(0 <= value < math.inf for value in model.coefficients_ms.values())
    error = model.error()
    assert 0 <= error.median <= error.p95 < math.inf


@given(
    seed=st.integers(0, 10_000),
    iterations=st.sampled_from([0, 5, 100]),
    noise=st.floats(0, 1),
    asked=shapes,
    name=st.sampled_from([name for name in FEATURES if name != "iteration"]),
    more=st.integers(1, 1000),
)
@settings(max_examples=60, deadline=None)
def test_more_of_anything_takes_no_less(
    seed: int, iterations: int, noise: float, asked: IterationShape, name: str, more: int
) -> None:
    model = train(LatencyModel(), iterations, noise=noise, outliers=0.1, seed=seed)
    larger = asked._replace(**{name: getattr(asked, name) + more})
    assert model.predict_ms(larger) >= model.predict_ms(asked)


@pytest.mark.parametrize("slowdown", [2.0, 0.5])
def test_follows_a_lasting_change_of_speed(slowdown: float) -> None:
    model = train(LatencyModel(), 500, noise=0.05)
    train(model, 20, slowdown=slowdown, noise=0.05, seed=1)
    assert worst_error(model, slowdown) < 0.15
    train(model, 200, slowdown=slowdown, noise=0.05, seed=2)
    assert worst_error(model, slowdown) < 0.1


def test_follows_a_change_seen_in_decodes_only() -> None:
    model = train(LatencyModel(), 500, noise=0.05)
    train(model, 20, slowdown=2.0, noise=0.05, make=lambda _: STEP)
    assert model.predict_ms(STEP) == pytest.approx(2 * planted_ms(STEP), rel=0.1)
    prompt = IterationShape().add_prefill(250, 0)
    assert model.predict_ms(prompt) == pytest.approx(2 * planted_ms(prompt), rel=0.15)


def test_follows_a_change_of_one_cost() -> None:
    model = train(LatencyModel(), 500, noise=0.05)
    generator = random.Random(5)
    for _ in range(500):
        shape = random_shape(generator)
        model.observe(shape, planted_ms(shape) + PLANTED["prefill_tokens"] * shape.prefill_tokens)
    prompt = IterationShape().add_prefill(250, 0)
    dearer_ms = planted_ms(prompt) + PLANTED["prefill_tokens"] * 250
    assert model.predict_ms(prompt) == pytest.approx(dearer_ms, rel=0.1)
    assert model.predict_ms(STEP) == pytest.approx(planted_ms(STEP), rel=0.1)


def test_single_outliers_change_next_to_nothing() -> None:
    model = train(LatencyModel(), 500, noise=0.05)
    before = model.predict_ms(STEP)
    for factor in (10, 0.05, 30):
        model.observe(STEP, factor * before)
        train(model, 8, noise=0.05, make=lambda _: STEP)
    assert model.predict_ms(STEP) == pytest.approx(before, rel=0.05)


def test_a_minute_of_decodes_leaves_the_cost_of_prompts() -> None:
    model = train(LatencyModel(), 500, noise=0.05)
    train(model, 2000, noise=0.05, make=lambda _: STEP)
    prompt = IterationShape().add_prefill(250, 0)
    assert model.predict_ms(prompt) == pytest.approx(planted_ms(prompt), rel=0.1)


def test_is_ready_after_some_live_traffic_and_over_estimates_before() -> None:
    generator = random.Random(3)
    model = LatencyModel()
    assert model.predict_ms(STEP) >= 100
    for _ in range(200):
        if model.ready:
            break
        shape = random_shape(generator)
        model.observe(shape, planted_ms(shape))
        if not model.ready:
            assert model.predict_ms(shape) >= planted_ms(shape)
    assert model.ready
    assert worst_error(model) < 0.25


def test_one_kind_of_iteration_makes_no_model() -> None:
    model = train(LatencyModel(), 500, make=lambda _: STEP)
    assert not model.ready
    assert model.error() == LatencyError()
    with pytest.raises(ValueError, match="not ready"):
        model.to_profile()


def test_predictions_are_scored_before_they_are_learnt_from() -> None:
    model = train(LatencyModel(), 300)
    seen = model.error().samples
    model.observe(STEP, 3 * planted_ms(STEP))
    assert model.error().samples == min(seen + 1, 256)
    model = train(LatencyModel(), 300, noise=0.3)
    assert 0.1 < model.error().median < 0.4


def test_safety_factor_covers_recent_iterations() -> None:
    quiet = train(LatencyModel(), 500, noise=0.05)
    assert 1.05 < quiet.safety_factor() < 1.2
    assert train(LatencyModel(), 500, noise=0.5).safety_factor() == 1.5
    assert LatencyModel().safety_factor() == 1.5


@given(
    seed=st.integers(0, 100),
    context=st.integers(0, 4000),
    limit_ms=st.floats(0, 3000),
    max_tokens=st.integers(-1, 2048),
    iterations=st.sampled_from([0, 200]),
)
@settings(max_examples=80, deadline=None)
def test_the_chunk_that_fits_is_the_largest(
    seed: int, context: int, limit_ms: float, max_tokens: int, iterations: int
) -> None:
    model = train(LatencyModel(), iterations, noise=0.1)
    base = random_shape(random.Random(seed))
    tokens = model.fit_prefill_tokens(base, context, limit_ms, max_tokens)
    assert 0 <= tokens <= max(max_tokens, 0)
    if tokens:
        assert model.predict_ms(base.add_prefill(tokens, context)) <= limit_ms
    if tokens < max_tokens:
        assert model.predict_ms(base.add_prefill(tokens + 1, context)) > limit_ms


def test_a_profile_makes_a_model_ready_with_the_same_predictions() -> None:
    model = train(LatencyModel(), 1000, noise=0.05)
    profile = LatencyProfile.model_validate_json(model.to_profile().model_dump_json())
    again = LatencyModel(profile)
    assert again.ready
    assert again.safety_factor() == model.safety_factor()
    assert worst_error(again) < 0.1
    assert again.error() == LatencyError()
    assert profile.coefficients_ms == pytest.approx(again.coefficients_ms, rel=0.2, abs=0.2)


def test_overhead_comes_with_a_profile_and_outlasts_long_iterations() -> None:
    model = LatencyModel(train(LatencyModel(), 500, noise=0.02).to_profile())
    smallest_ms = PLANTED["iteration"] + PLANTED["decode_sequences"]
    assert model.overhead_ms() == pytest.approx(smallest_ms, rel=0.1)
    train(model, 200, noise=0.02, make=lambda generator: IterationShape().add_prefill(generator.randint(300, 500), 0))
    assert model.overhead_ms() == pytest.approx(smallest_ms, rel=0.25)


def test_live_iterations_correct_a_profile() -> None:
    profile = train(LatencyModel(), 5000).to_profile()
    model = train(LatencyModel(profile), 30, slowdown=1.3, noise=0.02)
    assert worst_error(model, 1.3) < 0.1


def test_the_most_prompt_tokens_are_those_that_a_search_finds() -> None:
    generator = random.Random(5)
    model = LatencyModel()
    for number in range(64):
        shape = IterationShape().add_decodes(number % 7, 900 * (number % 7))
        shape = shape.add_prefill(1 + 37 * (number % 11), 50 * (number % 5)) if number % 3 or not number % 7 else shape
        model.observe(
            shape, 8.0 + 0.03 * shape.prefill_tokens + 1e-6 * shape.prefill_attention + shape.decode_sequences
        )
    assert model.ready

    for _ in range(500):
        base = IterationShape().add_decodes(generator.randrange(50), generator.randrange(50_000))
        context, most = generator.randrange(10_000), generator.choice((1, 2, 17, 2_048))
        limit_ms = generator.uniform(0.0, 120.0)
        if generator.random() < 0.3:  # Just what some number of tokens takes.
            limit_ms = model.predict_ms(base.add_prefill(generator.randint(1, most), context))

        tokens = model.fit_prefill_tokens(base, context, limit_ms, most)

        assert tokens == 0 or model.predict_ms(base.add_prefill(tokens, context)) <= limit_ms
        assert tokens == most or model.predict_ms(base.add_prefill(tokens + 1, context)) > limit_ms
    assert model.fit_prefill_tokens(IterationShape(), 0, float("inf"), 100) == 100
