"""What the scheduler does about passes that are stopped between two layers, on an engine without a model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conserve.engine.arrival_board import ArrivalBoard
from conserve.engine.options import Objective
from conserve.engine.page import EnginePage, Knobs
from conserve.engine.step_plan import StepPlan, read_plan
from conserve.engine.stoppable import WORKERS, explain_unresumable, explain_unstoppable
from conserve.engine.testing.connector import use_fake_connector
from conserve.engine.testing.scheduling import EngineSize, FakeEngine, make_config
from conserve.engine.testing.worker import LAYERS, sample_tokens
from conserve.engine.vllm_compat import SchedulerOutput
from conserve.policy.pass_stop import HOLD_S, MOST_KEPT_S, MOST_STOPS_IN_A_ROW
from tests.unit.engine.engines import Start, prompt, run_until_answered, scheduled

INFINITE = float("inf")
LONG, TIGHT_MS = 450, 650.0
"""An online prompt and an objective to its first token that leave arrivals no time to wait for what rides along."""
SECOND = Objective(ttft_slo_ms=1_000.0, tbt_slo_ms=INFINITE)


class Stops:
    """Stops the passes with these numbers before these layers."""

    def __init__(self, layers: dict[int, int]) -> None:
        self.layers = layers
        self.plans: list[StepPlan] = []

    def __call__(self, plan: StepPlan) -> int | None:
        self.plans.append(plan)
        return self.layers.get(len(self.plans))


@pytest.fixture
def board() -> Iterator[ArrivalBoard]:
    board = ArrivalBoard.create()
    yield board
    board.remove()


@pytest.fixture
def page() -> Iterator[EnginePage]:
    page = EnginePage.create()
    yield page
    page.remove()


def step(engine: FakeEngine) -> tuple[SchedulerOutput, StepPlan]:
    batch = engine.step()
    assert batch is not None
    plan = read_plan(batch)
    assert plan is not None
    return batch, plan


def counters(engine: FakeEngine) -> object:
    return engine.scheduler._counters


def test_a_stopped_pass_is_continued_with_what_it_had(start: Start) -> None:
    stops = Stops({1: 3, 2: 5})
    engine = start(EngineSize(), has_safepoints=True, choose_stop=stops)
    engine.add_offline("a", prompt(100), 4)
    engine.add_offline("b", prompt(90, 1), 4)
    first, plan = step(engine)
    assert (plan.step, plan.keep, plan.resumes) == (1, True, 0)
    for number in (2, 3):
        batch, plan = step(engine)
        assert batch.num_scheduled_tokens == first.num_scheduled_tokens
        assert (plan.step, plan.resumes, plan.generation) == (number, number - 1, number - 1)
    engine.run()
    counted = engine.scheduler._counters
    assert (counted.stops, counted.resumed_passes, counted.wasted_tokens) == (2, 2, 0)
    assert (counted.stops_in_quarter_2, counted.stops_in_quarter_3) == (1, 1)
    assert counted.offline_prefill_tokens == 190
    assert engine.answers == {"a": sample_tokens(prompt(100), 4), "b": sample_tokens(prompt(90, 1), 4)}


def test_without_continuing_it_is_computed_anew_and_counted(start: Start, page: EnginePage) -> None:
    page.write_knobs(Knobs(resume_off=1))
    engine = start(EngineSize(), has_safepoints=True, choose_stop=Stops({1: 2}), page=page.path)
    engine.add_offline("a", prompt(100), 4)
    assert not step(engine)[1].keep
    assert step(engine)[1].resumes == 0
    engine.run()
    assert engine.scheduler._counters.wasted_tokens == pytest.approx(100 * 2 / LAYERS)
    assert engine.answers["a"] == sample_tokens(prompt(100), 4)


def test_a_batch_with_an_online_request_is_never_stopped(start: Start) -> None:
    engine = start(EngineSize(), has_safepoints=True, choose_stop=Stops(dict.fromkeys(range(1, 100), 1)))
    engine.add("online", prompt(20), 30)
    engine.add_offline("offline", prompt(60, 1), 30)
    rules = set()
    while "online" not in engine.finished:
        batch, plan = step(engine)
        if "online" in batch.num_scheduled_tokens:
            rules.add(plan.rule)
    assert rules == {"never"}


def test_the_next_pass_waits_for_an_announced_request(start: Start, board: ArrivalBoard) -> None:
    engine = start(EngineSize(), SECOND, has_safepoints=True, arrivals=board.path, choose_stop=Stops({1: 1}))
    engine.add_offline("offline", prompt(200), 4)
    step(engine)
    number = board.announce(engine.clock.now_s, engine.clock.now_s + 1.0)
    for _ in range(3):
        assert scheduled(engine) == {}
        engine.clock.advance(0.001)
    engine.add("online", prompt(10, 1), 2, announcement=number)
    assert "online" in scheduled(engine)
    engine.run()
    assert engine.scheduler._counters.missing_arrivals == 0
    assert engine.scheduler._counters.resumed_passes == 1


def test_one_that_does_not_come_is_waited_for_a_moment(start: Start, board: ArrivalBoard) -> None:
    engine = start(EngineSize(), SECOND, has_safepoints=True, arrivals=board.path, choose_stop=Stops({1: 4}))
    engine.add_offline("offline", prompt(200), 4)
    step(engine)
    began_s = engine.clock.now_s
    board.announce(began_s, began_s + 1.0)
    while scheduled(engine) == {}:
        engine.clock.advance(0.01)
    assert HOLD_S <= engine.clock.now_s - began_s < HOLD_S + 1.0
    engine.run()
    assert engine.scheduler._counters.missing_arrivals == 1
    assert engine.scheduler._counters.resumed_passes == 1


def test_those_who_decode_do_not_wait_for_an_announced_request(start: Start, board: ArrivalBoard) -> None:
    engine = start(EngineSize(), SECOND, has_safepoints=True, arrivals=board.path)
    engine.add("online", prompt(10), 5)
    run_until_answered(engine, "online")
    engine.add_offline("offline", prompt(60, 1), 4)
    board.announce(engine.clock.now_s, engine.clock.now_s + 1.0)
    assert "online" in scheduled(engine)


def test_prompts_are_computed_in_slices_between_those_who_decode(start: Start) -> None:
    stops = Stops({1: 3, 2: 6})
    objective = Objective(ttft_slo_ms=TIGHT_MS, tbt_slo_ms=400.0)
    engine = start(EngineSize(max_num_batched_tokens=200), objective, has_safepoints=True, choose_stop=stops)
    engine.add("online", prompt(LONG), 12)
    run_until_answered(engine, "online")
    engine.add_offline("offline", prompt(140, 1), 3)
    turns, untils = [], []
    while not engine.answers["offline"]:
        tokens_s = engine.clock.now_s
        batch, plan = step(engine)
        turns.append(dict(batch.num_scheduled_tokens))
        if "offline" in turns[-1]:
            untils.append(plan.until_s - tokens_s)
    slice_of_it = {"offline": 140}
    # The second slice has the time that the first one has left.
    assert turns == [slice_of_it, slice_of_it, {"online": 1}, slice_of_it]
    assert 0.30 < untils[0] < 0.36
    assert engine.scheduler._counters.mixed_iterations == 0
    engine.run()
    assert engine.answers["offline"] == sample_tokens(prompt(140, 1), 3)
    assert engine.answers["online"] == sample_tokens(prompt(LONG), 12)


def test_where_arrivals_can_wait_prompts_ride_with_those_who_decode(start: Start) -> None:
    objective = Objective(ttft_slo_ms=5_000.0, tbt_slo_ms=400.0)
    engine = start(EngineSize(max_num_batched_tokens=200), objective, has_safepoints=True)
    engine.add("online", prompt(10), 12)
    run_until_answered(engine, "online")
    engine.add_offline("offline", prompt(150, 1), 3)
    batch, plan = step(engine)
    assert set(batch.num_scheduled_tokens) == {"online", "offline"}
    assert plan.until_s == INFINITE


def test_without_time_for_a_slice_prompts_ride_with_those_who_decode(start: Start) -> None:
    objective = Objective(ttft_slo_ms=TIGHT_MS, tbt_slo_ms=90.0)
    engine = start(EngineSize(), objective, has_safepoints=True)
    engine.add("online", prompt(LONG), 12)
    run_until_answered(engine, "online")
    engine.add_offline("offline", prompt(150, 1), 3)
    batch, plan = step(engine)
    assert set(batch.num_scheduled_tokens) == {"online", "offline"}
    assert plan.until_s == INFINITE


def test_a_pass_that_cannot_be_continued_for_long_is_given_up(start: Start) -> None:
    # Without an objective between tokens there is always an iteration of those who decode.
    engine = start(EngineSize(), SECOND, has_safepoints=True, choose_stop=Stops({1: 4}))
    engine.add_offline("offline", prompt(100, 1), 3)
    step(engine)
    engine.add("online", prompt(10), 400)
    began_s = engine.clock.now_s
    while not engine.answers["offline"]:
        step(engine)
    assert engine.clock.now_s - began_s > MOST_KEPT_S
    counted = engine.scheduler._counters
    assert (counted.resumed_passes, counted.wasted_tokens) == (0, pytest.approx(50))
    engine.run()
    assert engine.answers["offline"] == sample_tokens(prompt(100, 1), 3)


def test_waiting_requests_use_the_room_that_a_stopped_pass_leaves(start: Start) -> None:
    engine = start(EngineSize(), SECOND, has_safepoints=True, choose_stop=Stops({1: 4}))
    engine.add_offline("stopped", prompt(100, 1), 3)
    step(engine)
    engine.add("online", prompt(10), 20)
    engine.add_offline("waiting", prompt(40, 2), 3)
    while not engine.answers["waiting"]:
        batch, _ = step(engine)
        assert "stopped" not in batch.num_scheduled_tokens
    assert "online" not in engine.finished
    engine.run()
    assert engine.scheduler._counters.resumed_passes == 1


@pytest.mark.parametrize("gone", ["a", "b"])
def test_what_is_left_of_a_stopped_pass_goes_on_without_who_has_gone(start: Start, gone: str) -> None:
    engine = start(EngineSize(), has_safepoints=True, choose_stop=Stops({1: 4}))
    prompts = {"a": prompt(100), "b": prompt(90, 1)}
    for name, tokens in prompts.items():
        engine.add_offline(name, tokens, 4)
    step(engine)
    engine.cancel(gone)
    (left,) = prompts.keys() - {gone}
    batch, plan = step(engine)
    assert batch.num_scheduled_tokens == {left: len(prompts[left])}
    assert plan.resumes == 1
    engine.run()
    assert engine.answers[left] == sample_tokens(prompts[left], 4)
    assert engine.scheduler._counters.wasted_tokens == pytest.approx(len(prompts[gone]) / 2)


@pytest.mark.parametrize("change", ["preempted", "other blocks"])
def test_who_has_other_blocks_than_then_is_not_continued(start: Start, change: str) -> None:
    """Today nobody comes back with as many computed tokens as then; what is kept must not rest on that."""
    engine = start(EngineSize(), has_safepoints=True, choose_stop=Stops({1: 4}))
    engine.add_offline("a", prompt(100), 4)
    engine.add_offline("b", prompt(90, 1), 4)
    step(engine)
    control = engine.scheduler._control
    assert [request.request_id for request, _ in control.find_resumable()] == ["a", "b"]
    if change == "preempted":
        engine.scheduler.requests["a"].num_preemptions += 1
    else:
        (manager,) = engine.scheduler.kv_cache_manager.coordinator.single_type_managers
        manager.req_to_blocks["a"].reverse()
    assert [request.request_id for request, _ in control.find_resumable()] == ["b"]


def test_who_counted_on_a_prefix_of_the_stopped_pass_begins_anew(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=128), has_safepoints=True, choose_stop=Stops({1: 4}))
    prompts = {"first": [*prompt(96), 1], "second": [*prompt(96), 2]}
    for name, tokens in prompts.items():
        engine.add_offline(name, tokens, 3)
    batch, _ = step(engine)
    assert batch.num_scheduled_tokens == {"first": 97, "second": 1}
    batch, plan = step(engine)
    assert (batch.num_scheduled_tokens, plan.resumes) == ({"first": 97}, 1)
    engine.run()
    assert engine.answers == {name: sample_tokens(tokens, 3) for name, tokens in prompts.items()}
    assert engine.scheduler._counters.offline_prefill_tokens == 98, "its prefix was there by then"


def test_it_may_be_in_the_next_batch_again(start: Start, page: EnginePage) -> None:
    page.write_knobs(Knobs(resume_off=1))
    engine = start(EngineSize(), has_safepoints=True, choose_stop=Stops({1: 4}), page=page.path)
    prompts = {"first": [*prompt(96), 1], "second": [*prompt(96), 2]}
    for name, tokens in prompts.items():
        engine.add_offline(name, tokens, 3)
    step(engine)
    batch, _ = step(engine)
    assert set(batch.num_scheduled_tokens) == {"first", "second"}
    engine.run()
    assert engine.answers == {name: sample_tokens(tokens, 3) for name, tokens in prompts.items()}


def test_stops_of_which_nothing_is_kept_come_to_an_end(start: Start) -> None:
    stops = Stops(dict.fromkeys(range(1, 1_000), 0))
    engine = start(EngineSize(), SECOND, has_safepoints=True, choose_stop=stops)
    engine.add_offline("offline", prompt(60), 1)
    rules = []
    while not engine.answers["offline"]:
        rules.append(step(engine)[1].rule)
    assert rules == ["slo"] * MOST_STOPS_IN_A_ROW + ["never"]


def test_what_a_stopped_pass_has_computed_counts_when_slots_are_taken(start: Start) -> None:
    stops = Stops({2: 6})
    engine = start(EngineSize(max_num_seqs=2), SECOND, has_safepoints=True, choose_stop=stops)
    engine.add_offline("decoding", prompt(20), 60)
    run_until_answered(engine, "decoding")
    engine.add_offline("stopped", prompt(100, 1), 4)
    step(engine)
    assert engine.scheduler._control.stopped is not None
    engine.add("online", prompt(10, 2), 2)
    batch, _ = step(engine)
    assert set(batch.num_scheduled_tokens) == {"online"}
    assert {request.request_id for request in engine.scheduler.running} == {"online", "stopped"}
    engine.run()
    assert engine.scheduler._counters.resumed_passes == 1


def test_the_ablation_lets_passes_come_to_their_end(start: Start, page: EnginePage, board: ArrivalBoard) -> None:
    page.write_knobs(Knobs(safepoints_off=1))
    engine = start(EngineSize(), SECOND, has_safepoints=True, page=page.path, arrivals=board.path)
    board.announce(engine.clock.now_s, engine.clock.now_s)
    engine.add_offline("offline", prompt(60), 1)
    batch, plan = step(engine)
    assert batch.num_scheduled_tokens == {"offline": 60}
    assert plan.rule == "never"


def test_never_is_as_without_safepoints(start: Start) -> None:
    engine = start(EngineSize(), SECOND, has_safepoints=True, preempt="never")
    engine.add_offline("offline", prompt(60), 1)
    batch = engine.step()
    assert read_plan(batch) is None


def test_why_passes_of_an_engine_cannot_be_stopped() -> None:
    config = make_config(EngineSize(), has_safepoints=True)
    assert explain_unstoppable(config) is None
    assert explain_unresumable(config) is None
    config.parallel_config.pipeline_parallel_size = 2
    assert explain_unstoppable(config) == "stages of a pipeline overlap"
    stock = make_config(EngineSize())
    assert explain_unstoppable(stock) == "the workers are not ConServe's"
    stock.parallel_config.worker_cls = WORKERS["gpu"]
    assert explain_unstoppable(stock) is None
    connected = make_config(EngineSize(), has_safepoints=True, kv_transfer=use_fake_connector())
    assert explain_unstoppable(connected) == "a KV connector would store blocks of a stopped pass"


def test_those_who_decode_go_on_in_time_beside_slices_with_a_batch_in_flight(start: Start) -> None:
    stops = Stops({number: number % LAYERS for number in range(1, 100)})
    objective = Objective(ttft_slo_ms=TIGHT_MS, tbt_slo_ms=400.0)
    size = EngineSize(max_num_batched_tokens=200)
    engine = start(size, objective, has_safepoints=True, choose_stop=stops, async_scheduling=True)
    engine.add("online", prompt(LONG), 12)
    run_until_answered(engine, "online")
    for number in range(4):
        engine.add_offline(f"offline-{number}", prompt(190, 1 + number), 1)
    tokens, latest_s = len(engine.answers["online"]), engine.clock.now_s
    while "online" not in engine.finished:
        engine.step()
        if len(engine.answers["online"]) > tokens:
            tokens, latest_s = len(engine.answers["online"]), engine.clock.now_s
        assert engine.clock.now_s - latest_s < 0.5
    assert engine.scheduler._counters.stops > 3


def test_a_stop_for_an_arrival_counts_although_its_iterations_come_between(start: Start) -> None:
    stops = Stops(dict.fromkeys(range(1, 1_000), 0))
    tight = Objective(ttft_slo_ms=60.0, tbt_slo_ms=INFINITE)
    engine = start(EngineSize(), tight, has_safepoints=True, choose_stop=stops)
    engine.add_offline("offline", prompt(200), 1)
    rules = []
    for number in range(MOST_STOPS_IN_A_ROW + 1):
        rules.append(step(engine)[1].rule)
        engine.add(f"online-{number}", prompt(10, 1 + number), 1)
        run_until_answered(engine, f"online-{number}")
    assert rules == ["slo"] * MOST_STOPS_IN_A_ROW + ["never"]
