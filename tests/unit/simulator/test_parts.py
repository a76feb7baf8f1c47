"""The parts that a simulated replica is made of."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from conserve.policy.latency import IterationShape
from conserve.policy.token_budget import limit_efficient_ms
from conserve.simulator.decodes import Decodes
from conserve.simulator.engine_costs import Noise, make_model
from conserve.simulator.engine_state import EngineLimits, EngineState
from conserve.simulator.harvest_limits import Mechanisms
from conserve.simulator.harvest_planner import HarvestPlanner
from conserve.simulator.kv_memory import KvMemory
from conserve.simulator.metrics import LatencyHistogram, Metrics
from conserve.simulator.offline_filling import Room, fill
from conserve.simulator.online_demand import OnlineDemand
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Chunk, Part, Step
from tests.unit.simulator.clusters import COSTS


def make_request(number: int, prompt: int = 100, output: int = 10, **more: int) -> SimRequest:
    return SimRequest(number, 0.0, prompt, output, online=False, **more)


def begin_decoding(group: Decodes, request: SimRequest, ahead: int = 0) -> None:
    request.computed, request.produced = request.prompt_tokens, 1
    group.add(request, ahead)


@pytest.mark.parametrize("slope_ms", [0.0, 0.01, 2.0])
def test_the_iteration_under_way_is_the_one_whose_time_it_is(slope_ms: float) -> None:
    step = Step(IterationShape(), first_ms=10.0, slope_ms=slope_ms, count=50)

    for iteration in range(50):
        begins_ms = step.duration_ms(iteration)
        assert step.find_iteration(begins_ms + 0.01) == iteration
        assert step.find_iteration(step.duration_ms(iteration + 1) - 0.01) == iteration
    assert step.count_within(step.duration_ms(7) + 0.01) == 7
    assert step.duration_ms(3) == pytest.approx(30 + 3 * slope_ms)


def test_a_step_of_several_parts_knows_when_its_iterations_and_tokens_are_over() -> None:
    step = Step(IterationShape(), first_ms=80.0)
    step.parts = [Part(2, 80.0, 0.0, 1_500), Part(5, 70.0, 0.5, 1_200), Part(1, 31.0, 0.0, 300), Part(20, 12.0, 0.1, 0)]
    step.count = 28

    for iteration in range(28):
        begins_ms = step.duration_ms(iteration)
        assert step.find_iteration(begins_ms + 0.01) == iteration
        assert step.find_iteration(step.duration_ms(iteration + 1) - 0.01) == iteration
        gaps = step.list_gaps(iteration, 28)
        assert sum(count for count, _ in gaps) == 28 - iteration
        assert sum(count * mean_ms for count, mean_ms in gaps) == pytest.approx(step.duration_ms() - begins_ms)
    assert step.count_fluid(28) == 2 * 1_500 + 5 * 1_200 + 300
    for tokens, iterations in ((1, 1), (1_500, 1), (1_501, 2), (3_000, 2), (3_001, 3), (9_000, 7), (9_300, 8)):
        assert step.count_until(tokens) == iterations


def test_joiners_are_computed_where_they_joined() -> None:
    step = Step(IterationShape(), first_ms=80.0)
    step.parts = [Part(10, 80.0, 0.0, 1_000)]
    step.count, step.joinable_tokens, step.online_tokens = 10, 1_000, 1_200
    step.joiners, step.online_end = [(make_request(1, prompt=2_000), 3_000, 1_600, 0)], 4_600

    assert [step.count_online_left(count) for count in range(6)] == [3_200, 2_200, 2_000, 2_000, 750, 0]
    # One iteration is theirs alone.
    assert [step.count_held(count) for count in range(3, 7)] == [0, 1, 1, 1]


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


def test_what_members_would_count_beyond_their_end_is_the_sum_over_all_of_them() -> None:
    group = Decodes()
    generator = random.Random(5)
    running: dict[int, SimRequest] = {}
    for number in range(400):
        request = running.setdefault(number, make_request(number, output=generator.randint(2, 60)))
        begin_decoding(group, request, ahead=generator.randint(0, 3))
        if number % 5 == 0:
            group.remove(running.pop(generator.choice([*running])))
        if number % 7 == 0 and running:
            group.advance(1, held=[running[generator.choice([*running])]])
        iterations = generator.randint(1, 30)
        last = group.tick + iterations

        assert group.count_beyond(iterations) == sum(max(0, last - each.end_tick) for each in running.values())

        group.advance(1)
        for ended in group.pop_ended():
            del running[ended.number]


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


@pytest.mark.parametrize(("kept", "going", "short"), [(0, [0, 1, 2], 1), (2, [1, 2], 2), (9, [1, 2], 2)])
def test_without_a_free_block_only_those_wait_who_need_one(kept: int, going: list[int], short: int) -> None:
    state = EngineState(COSTS, EngineLimits(), Metrics())
    oldest = make_request(0, prompt=800)
    state.admit(oldest, 0)
    requests = [make_request(1 + number, prompt=tokens) for number, tokens in enumerate((160, 170, 175, 192))]
    for request in requests:
        state.admit(request, 0)
        state.offline_prompts.remove(request)
        begin_decoding(state.offline, request)

    filling = fill(state, OnlineDemand(), math.inf, 64, Room(1, kept, kept), (), None, 0.0, decodes_only=True)

    held = [request for request in requests if request in filling.held_decodes]
    assert [number for number, request in enumerate(requests) if request not in held] == going
    assert (filling.decodes, filling.blocks_short) == (len(going), short)
    assert filling.shape.decode_context == sum(requests[number].computed for number in going)


def test_noise_is_as_large_and_lasts_as_long_as_it_was_measured() -> None:
    costs = COSTS.model_copy(update={"noise": 0.05, "noise_memory": 0.7})
    noise = Noise(costs, random.Random(1))

    found = [math.log(noise.next_factor()) for _ in range(40_000)]

    assert statistics.pstdev(found) == pytest.approx(0.05, rel=0.05)
    assert statistics.correlation(found[1:], found[:-1]) == pytest.approx(0.7, abs=0.03)
    assert Noise(COSTS, random.Random(1)).next_factor() == 1.0


def end_iterations(planner: HarvestPlanner, state: EngineState, factor: float, count: int = 200) -> None:
    """So many iterations, each of which takes `factor` times what it costs, one in ten half as much again."""
    for number in range(count):
        request = make_request(number, prompt=400 + number)
        shape = IterationShape().add_prefill(request.prompt_tokens, 0)
        slow = 1.5 if number % 10 == 0 else 1.0
        took_ms = factor * slow * state.costs.time_ms(shape)
        planner.note_done(Step(shape, took_ms, chunks=[Chunk(request, request.prompt_tokens)]), number)


@pytest.mark.parametrize("coarse", [False, True])
def test_the_scheduler_learns_from_the_iterations_that_it_has_planned(coarse: bool) -> None:
    state = EngineState(COSTS, EngineLimits(), Metrics(), coarse=coarse)
    planner = HarvestPlanner(state, Mechanisms(ttft_slo_ms=500.0, tbt_slo_ms=60.0))
    shape = IterationShape().add_prefill(500, 0)
    known_ms, safety = state.model.predict_ms(shape), state.safety

    end_iterations(planner, state, factor=2.0)

    if coarse:
        # Its steps stand for many iterations, so they teach nothing.
        assert (state.model.predict_ms(shape), state.safety) == (known_ms, safety)
    else:
        assert state.model.predict_ms(shape) == pytest.approx(2.0 * known_ms, rel=0.1)
        assert state.safety > 1.3 > safety
        assert planner.efficient_ms == limit_efficient_ms(state.model) > 0
