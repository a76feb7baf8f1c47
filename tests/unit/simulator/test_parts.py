"""The parts that a simulated replica is made of."""

from __future__ import annotations

import math
import random

import pytest

from conserve.policy.latency import IterationShape
from conserve.simulator.decodes import Decodes
from conserve.simulator.engine_costs import make_model
from conserve.simulator.kv_memory import KvMemory
from conserve.simulator.metrics import LatencyHistogram
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Step
from tests.unit.simulator.clusters import COSTS


def make_request(number: int, prompt: int = 100, output: int = 10, **more: int) -> SimRequest:
    return SimRequest(number, 0.0, prompt, output, online=False, **more)


def begin_decoding(group: Decodes, request: SimRequest) -> None:
    request.computed, request.produced = request.prompt_tokens, 1
    group.add(request)


@pytest.mark.parametrize("slope_ms", [0.0, 0.01, 2.0])
def test_the_iteration_under_way_is_the_one_whose_time_it_is(slope_ms: float) -> None:
    step = Step(IterationShape(), first_ms=10.0, slope_ms=slope_ms, count=50)

    for iteration in range(50):
        begins_ms = step.duration_ms(iteration)
        assert step.find_iteration(begins_ms + 0.01) == iteration
        assert step.find_iteration(step.duration_ms(iteration + 1) - 0.01) == iteration
    assert step.count_within(step.duration_ms(7) + 0.01) == 7
    assert step.duration_ms(3) == pytest.approx(30 + 3 * slope_ms)


def test_decodes_end_when_they_have_all_their_tokens() -> None:
    group = Decodes()
    short, long = make_request(1, output=4), make_request(2, output=9)
    begin_decoding(group, short)
    group.advance(1)
    begin_decoding(group, long)

    assert group.iterations_to_end() == 2
    group.advance(2)

    assert group.pop_ended() == [short]
    assert (short.produced, short.computed) == (4, 103)
    assert group.iterations_to_end() == 6
    assert group.context == group.computed_of(long) == 102


def test_who_is_held_back_does_not_get_on() -> None:
    group = Decodes()
    going, held = make_request(1), make_request(2)
    begin_decoding(group, going)
    begin_decoding(group, held)

    group.advance(5, held=[held])

    assert (group.produced_of(going), group.produced_of(held)) == (6, 1)
    assert group.context == 205
    group.advance(4)
    assert group.pop_ended() == [going]
    assert group.iterations_to_end() == 5


def test_iterations_beyond_the_end_of_a_request_are_not_its_own() -> None:
    group = Decodes()
    short, long = make_request(1, output=3), make_request(2, output=50)
    begin_decoding(group, short)
    begin_decoding(group, long)

    assert group.count_beyond(10) == 8
    group.advance(10)

    assert group.pop_ended() == [short]
    assert group.tick - short.end_tick == 8
    assert (short.produced, short.computed) == (3, 102)
    assert group.context == 110


def test_kv_memory_is_free_again_when_everybody_has_gone() -> None:
    kv = KvMemory(100, 16)
    generator = random.Random(3)
    running: list[SimRequest] = []
    for number in range(200):
        if running and generator.random() < 0.5:
            kv.release(running.pop(generator.randrange(len(running))), stays=generator.random() < 0.5)
            continue
        request = make_request(number, prompt=64, prefix=number % 3, prefix_tokens=32)
        if kv.count_needed(request) + 16 > kv.free_tokens:
            continue
        kv.admit(request, kv.find_cached(request))
        left = request.to_compute
        request.computed += left
        kv.grow(left)
        kv.note_computed(request)
        running.append(request)
        assert 0 <= kv.used <= kv.capacity
    for request in running:
        kv.release(request)

    assert kv.used == 0


def test_a_common_prefix_is_held_once_and_found_by_others() -> None:
    kv = KvMemory(100, 16)
    first, second = (make_request(number, prompt=100, prefix=1, prefix_tokens=64) for number in (1, 2))
    kv.admit(first, 0)
    first.computed = 100
    kv.grow(100)
    kv.note_computed(first)

    assert kv.find_cached(second) == 64
    assert kv.count_needed(second) == 36
    kv.admit(second, 64)
    assert kv.used == 100 + 8 + 8
    kv.release(first)
    assert kv.used == 64 + 8
    kv.release(second)
    assert kv.used == 0
    assert kv.find_cached(make_request(3, prompt=100, prefix=1, prefix_tokens=64)) == 64


def test_what_nobody_holds_goes_when_the_memory_is_needed() -> None:
    kv = KvMemory(10, 16)
    request, other = make_request(1, prompt=96), make_request(2, prompt=140)
    kv.admit(request, 0)
    request.computed = 96
    kv.grow(96)
    kv.release(request, stays=True)
    assert kv.find_cached(request) == 80  # One token at least is computed again.

    kv.admit(other, 0)
    other.computed = 140
    kv.grow(140)

    assert kv.find_cached(request) == 0


def test_percentiles_of_a_histogram_are_those_of_its_values() -> None:
    generator = random.Random(1)
    values = sorted(generator.lognormvariate(3.0, 1.0) for _ in range(20_000))
    histogram, other = LatencyHistogram(), LatencyHistogram()
    for number, value in enumerate(values):
        (histogram if number % 2 else other).add(value)
    histogram.merge(other)

    for share in (0.5, 0.9, 0.99):
        assert histogram.percentile(share) == pytest.approx(values[math.ceil(share * len(values)) - 1], rel=0.003)
    assert histogram.mean_ms == pytest.approx(sum(values) / len(values))


def test_the_latency_model_has_learnt_the_costs() -> None:
    model = make_model(COSTS)

    for shape in (IterationShape().add_prefill(700, 1_000), IterationShape().add_decodes(50, 50_000)):
        assert model.predict_ms(shape) == pytest.approx(COSTS.time_ms(shape), rel=0.03)
    assert 1.0 <= model.safety_factor() < 1.05
