"""What the scheduler decides, one situation at a time. 35 ms and 1.5 ms a token: that is an iteration here."""

from __future__ import annotations

from unittest import mock

import pytest

from conserve.engine import scheduler as scheduler_module
from conserve.engine.options import Objective
from conserve.engine.page import EnginePage, Knobs
from conserve.engine.scheduler import AsyncCoServeScheduler, CoServeScheduler
from conserve.engine.testing.connector import REMOTE_TOKEN, use_fake_connector
from conserve.engine.testing.scheduling import (
    NO_LIMIT,
    EngineSize,
    FakeEngine,
    VirtualClock,
    fixed_cost_ms,
    make_config,
    make_scheduler,
)
from conserve.engine.testing.worker import WrongBatch, sample_tokens
from conserve.engine.vllm_compat import RequestStatus
from conserve.policy import token_budget
from conserve.policy.latency import IterationShape
from conserve.policy.token_budget import EFFICIENT_SHARE
from tests.unit.engine.engines import Start, prompt, run_until_answered, running, scheduled

INFINITE = float("inf")


def free_blocks(engine: FakeEngine) -> int:
    return int(engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def fill_slots(engine: FakeEngine, lengths: list[int], max_tokens: int = 60) -> None:
    """Offline requests of these prompt lengths that decode, named after their length."""
    for number, tokens in enumerate(lengths):
        engine.add_offline(f"offline-{tokens}", prompt(tokens, 500 + number), max_tokens)
        engine.clock.advance(0.001)
    while any(not engine.answers[f"offline-{tokens}"] for tokens in lengths):
        engine.step()


# Slots and KV blocks.


def test_a_waiting_online_request_takes_a_slot_at_once_from_the_offline_one_that_loses_least(start: Start) -> None:
    engine = start(EngineSize(max_num_seqs=3, kv_blocks=16, max_model_len=160))
    fill_slots(engine, [90, 20, 50])
    engine.add("online", prompt(10), 4)
    batch = scheduled(engine)
    assert batch["online"] == 10
    assert "offline-20" not in batch
    assert set(running(engine)) == {"online", "offline-90", "offline-50"}
    engine.run()
    assert engine.answers["offline-20"] == sample_tokens(prompt(20, 501), 60)


def test_with_plenty_of_kv_blocks_it_is_the_one_that_has_least_outside_of_full_blocks(start: Start) -> None:
    engine = start(EngineSize(max_num_seqs=3))
    fill_slots(engine, [92, 20, 50])
    computed = {request.request_id: request.num_computed_tokens for request in engine.scheduler.running}
    engine.add("online", prompt(10), 4)
    engine.step()
    (given_way,) = computed.keys() - set(running(engine))
    assert given_way != "offline-20"
    assert computed[given_way] % 16 == min(tokens % 16 for tokens in computed.values())
    engine.run()
    assert engine.scheduler._counters.offline_recomputed_tokens <= 16


def test_slots_are_those_that_vllm_gives_out(start: Start) -> None:
    """With `max_num_active_seqs` below `max_num_seqs` the former counts."""
    engine = start(EngineSize(max_num_seqs=8, max_num_active_seqs=2))
    fill_slots(engine, [20, 30])
    engine.add("online", prompt(10), 4)
    assert scheduled(engine)["online"] == 10


def test_a_waiting_online_request_takes_kv_blocks(start: Start) -> None:
    engine = start(EngineSize(kv_blocks=21, max_num_seqs=4, max_model_len=256))
    fill_slots(engine, [96, 90, 60])
    assert free_blocks(engine) < 8
    engine.add("online", prompt(128), 4)
    batch = scheduled(engine)
    assert batch["online"] == 128
    assert {"offline-96", "offline-90"} & set(running(engine)), "more was preempted than needed"
    assert engine.scheduler._counters.online_preemptions == 0


def test_blocks_that_an_arrival_shares_with_a_victim_are_not_counted_twice(start: Start) -> None:
    """The arrival hits the victim's blocks in the prefix cache: preempting it makes them free, and needed."""
    engine = start(EngineSize(kv_blocks=16, max_num_seqs=4, max_model_len=240))
    engine.add_offline("shares", prompt(96, 7), 60)
    engine.clock.advance(0.001)
    fill_slots(engine, [97])
    assert set(running(engine)) == {"shares", "offline-97"}
    # 10 blocks, 6 of which the offline request has: 4 more, while 2 are free.
    engine.add("online", [*prompt(96, 7), *range(900, 960)], 4)
    assert "online" in scheduled(engine)


def test_held_requests_keep_their_blocks_and_lose_nothing(start: Start) -> None:
    engine = start(EngineSize(), Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=37.0))
    engine.add("online", prompt(10), 30)
    engine.step()
    engine.add_offline("offline", prompt(100, 1), 5)
    assert list(scheduled(engine)) == ["online"], "nothing fits beside it"
    engine.scheduler._settings.objectives = (NO_LIMIT,)
    assert scheduled(engine)["offline"] == 100
    engine.scheduler._settings.objectives = (Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=37.0),)
    free = free_blocks(engine)
    assert [list(scheduled(engine)) for _ in range(3)] == [["online"]] * 3
    assert running(engine) == ["online", "offline"]
    assert free - free_blocks(engine) <= 1, "the online request's own growth"
    engine.scheduler._settings.objectives = (NO_LIMIT,)
    assert scheduled(engine) == {"online": 1, "offline": 1}


def test_blocks_are_kept_free_for_a_burst_as_large_as_the_last_one(start: Start) -> None:
    engine = start(EngineSize(kv_blocks=101, max_num_seqs=50))
    for number in range(3):
        engine.add(f"online-{number}", prompt(60, number), 2)
    engine.run()
    for number in range(50):
        engine.add_offline(f"offline-{number}", prompt(60, 100 + number), 20)
    for _ in range(12):
        engine.step()
    reserve = engine.scheduler._counters.kv_reserve_blocks
    assert reserve >= 3 * 4
    assert free_blocks(engine) >= reserve
    assert len(running(engine)) > 10, "no more than that is kept free"


def test_the_reserve_keeps_nobody_out_where_no_offline_request_runs(start: Start) -> None:
    engine = start(EngineSize(kv_blocks=33, max_num_batched_tokens=512))
    engine.add("online", prompt(180), 60)
    engine.step()
    assert engine.scheduler._kv.reserve.blocks(engine.clock.monotonic()) == 8
    engine.add_offline("offline", prompt(280, 1), 3)
    assert free_blocks(engine) < 18 + 8
    assert scheduled(engine) == {"online": 1, "offline": 280}


def test_work_that_others_keep_in_the_cache_is_not_lost(start: Start) -> None:
    """The one with the longer context gives way, since nearly all of it stays in the cache."""
    engine = start(EngineSize(max_num_seqs=3, kv_blocks=24, max_model_len=256))
    shared = prompt(160, 7)
    engine.add_offline("keeper", [*shared, 1], 60)
    run_until_answered(engine, "keeper")
    engine.add_offline("shares", [*shared, 2, 3], 60)
    run_until_answered(engine, "shares")
    engine.add_offline("own", prompt(60, 8), 60)
    run_until_answered(engine, "own")
    engine.add("online", prompt(10), 4)
    assert "online" in scheduled(engine)
    assert "shares" not in running(engine) or "keeper" not in running(engine)
    assert "own" in running(engine)


def test_preempted_requests_go_on_first_those_with_most_work_done_before_others(start: Start) -> None:
    engine = start(EngineSize(max_num_seqs=3))
    fill_slots(engine, [20, 50, 90], max_tokens=40)
    engine.add_offline("never-started", prompt(30, 1), 2)
    for number in range(3):
        engine.add(f"online-{number}", prompt(10, 10 + number), 3)
    engine.step()
    assert set(running(engine)) == {"online-0", "online-1", "online-2"}
    order: list[str] = []
    while engine.is_busy:
        order += [name for name in scheduled(engine) if name.startswith(("offline", "never")) and name not in order]
    assert order == ["offline-90", "offline-50", "offline-20", "never-started"]


# Time.


def test_a_mixed_iteration_is_filled_exactly_up_to_the_tbt_objective(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=512), Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=200.5))
    engine.add("online", prompt(10), 30)
    engine.step()
    engine.add_offline("offline", prompt(400, 1), 5)
    for _ in range(3):
        batch = scheduled(engine)
        assert batch["online"] == 1
        assert batch["offline"] == int((200.5 - 35) / 1.5) - 1, "one token more would be late"


def test_what_the_objective_leaves_goes_to_decodes_first(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=128), Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=100.0))
    fill_slots(engine, [20, 30])
    engine.add_offline("prompt", prompt(400, 1), 5)
    engine.step()
    engine.add("online", prompt(10), 30)
    engine.step()
    batch = scheduled(engine)
    assert list(batch) == ["online", "offline-20", "offline-30", "prompt"]
    assert sum(batch.values()) == int((100 - 35) / 1.5)


LARGE = EngineSize(max_num_batched_tokens=1_024, max_model_len=1_024, kv_blocks=200)
LOOSE = Objective(ttft_slo_ms=1e6, tbt_slo_ms=1e6)
SMALLEST_MS = 35 + 1.5 * 3
"""Of the iterations that the model has learnt from."""


def test_under_loose_objectives_iterations_are_no_longer_than_efficient(start: Start) -> None:
    engine = start(LARGE, LOOSE)
    engine.add("online", prompt(10), 30)
    engine.step()
    engine.add_offline("offline", prompt(900, 1), 5)
    tokens = sum(scheduled(engine).values())
    assert 35 + 1.5 * tokens == pytest.approx(SMALLEST_MS / (1 - EFFICIENT_SHARE), abs=5)


def test_nor_larger_than_the_most_efficient_pass(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=256), Objective(ttft_slo_ms=60_000, tbt_slo_ms=60_000))
    for tokens, token_ms in ((100, 1.0), (200, 2.0)):
        for _ in range(5):
            shape = IterationShape().add_prefill(tokens, 0)
            engine.scheduler._meter.rates.observe(shape, tokens * token_ms)
    engine.add("online", prompt(10), 20)
    run_until_answered(engine, "online")
    engine.add_offline("offline", prompt(400, 1), 1)
    assert sum(scheduled(engine).values()) <= 127


def test_an_arrival_waits_for_the_prompts_before_it(start: Start) -> None:
    engine = start(EngineSize(max_num_seqs=1), Objective(ttft_slo_ms=60_000, tbt_slo_ms=60_000))
    engine.add("running", prompt(300), 2)
    engine.step()
    engine.add_offline("offline", prompt(200, 3), 2)
    engine.add("waiting", prompt(50, 1), 2)
    engine.add("last", prompt(30, 2), 2)
    assert engine.scheduler._guard.typical_tokens == 300
    # 44 tokens of the first prompt are left.
    assert [tokens for _, tokens, _ in engine.scheduler._guard._arrivals] == [300, 44 + 50, 44 + 50 + 30]


@pytest.mark.parametrize("offline", [True, False])
def test_nor_those_with_online_prompts_beside_readers(start: Start, offline: bool) -> None:
    """Offline work has the longer limit, but its tokens would go to the prompt that is cut short."""
    engine = start(LARGE, LOOSE)
    if offline:
        fill_slots(engine, [20, 30])
    engine.add("online", prompt(10), 30)
    engine.step()
    engine.add("long", prompt(900, 1), 5)
    batch = scheduled(engine)
    assert batch.keys() == {"online", "long"}
    tokens = sum(batch.values())
    assert 35 + 1.5 * tokens == pytest.approx(SMALLEST_MS / (1 - EFFICIENT_SHARE), abs=5)


def test_without_objectives_they_are_full(start: Start) -> None:
    engine = start(LARGE)
    engine.add("online", prompt(10), 30)
    engine.step()
    engine.add_offline("offline", prompt(1_000, 1), 5)
    engine.add_offline("other", prompt(100, 2), 5)
    assert sum(scheduled(engine).values()) == 1_024


@pytest.mark.parametrize("offline", [True, False])
def test_a_long_online_prompt_does_not_hold_up_those_who_decode(start: Start, offline: bool) -> None:
    engine = start(EngineSize(max_num_batched_tokens=512), Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=200.5))
    engine.add("reader", prompt(10), 30)
    engine.step()
    if offline:
        engine.add_offline("offline", prompt(400, 1), 5)
        engine.step()
    engine.add("long", prompt(300, 2), 5)
    most = int((200.5 - 35) / 1.5) - 1
    for tokens in (most, most, 300 - 2 * most):
        batch = scheduled(engine)
        assert batch["reader"] == 1
        assert batch["long"] == tokens
    engine.run()
    assert engine.answers["long"] == sample_tokens(prompt(300, 2), 5)


def test_an_online_prompt_is_computed_whole_where_nobody_decodes(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=512), Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=100.0))
    engine.add_offline("offline", prompt(20, 1), 30)
    engine.step()
    engine.add("long", prompt(300, 2), 5)
    assert scheduled(engine)["long"] == 300


def test_online_prompts_are_computed_one_after_the_other(start: Start) -> None:
    """A part of the second one would come out of what the first one still needs."""
    engine = start(EngineSize(max_num_batched_tokens=512), Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=200.5))
    engine.add("reader", prompt(10), 30)
    engine.step()
    for number in (1, 2):
        engine.add(f"long-{number}", prompt(150, 1 + number), 5)
    most = int((200.5 - 35) / 1.5) - 1
    assert scheduled(engine) == {"reader": 1, "long-1": most}
    assert scheduled(engine) == {"reader": 1, "long-1": 150 - most, "long-2": most - (150 - most)}


def test_a_tight_tbt_objective_leaves_online_prompts_half_of_an_iteration(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=512), Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=1.0))
    engine.add("reader", prompt(10), 30)
    engine.step()
    engine.add("long", prompt(300, 2), 5)
    assert scheduled(engine)["long"] == pytest.approx((35 + 1.5) / 1.5, abs=2)


def test_each_of_several_new_prompts_counts(start: Start) -> None:
    """Where a prompt costs much by itself, few of them fit, however short they are."""
    engine = start(
        EngineSize(max_num_batched_tokens=512), Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=140.0), taught=False
    )
    model = engine.scheduler._model
    for number in range(400):
        prompts, tokens = number % 4, (number % 4) * (1 + number % 11)
        decodes = number % 5
        model.observe(IterationShape(tokens, 0.0, prompts, decodes, 0), 35.0 + 20 * prompts + tokens + decodes)
    engine.add("online", prompt(10), 30)
    engine.step()
    for number in range(6):
        engine.add_offline(f"offline-{number}", prompt(4, number + 1), 5)
    batch = engine.schedule()
    assert len(batch.num_scheduled_tokens) == 1 + (140 - 36) // 24


def test_a_waiting_prompt_has_its_first_token_in_time_whatever_waits_behind_it(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=512), Objective(ttft_slo_ms=400.0, tbt_slo_ms=INFINITE))
    engine.add_offline("offline", prompt(500, 1), 5)
    engine.add("online", prompt(50), 5)
    engine.clock.advance(0.250)
    batch = scheduled(engine)
    assert batch == {"online": 50, "offline": int((400 - 250 - 35) / 1.5) - 50}


def test_nothing_rides_along_when_the_objective_is_missed_already(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=512), Objective(ttft_slo_ms=400.0, tbt_slo_ms=INFINITE))
    engine.add_offline("offline", prompt(500, 1), 5)
    engine.add("online", prompt(50), 5)
    engine.clock.advance(0.5)
    assert scheduled(engine) == {"online": 50}


def test_a_running_offline_prompt_does_not_eat_what_an_arrival_is_to_compute(start: Start) -> None:
    """Nor does another one take its place, and a slot, where it has to wait."""
    engine = start(EngineSize(max_num_batched_tokens=128, max_num_seqs=4))
    engine.add_offline("offline", prompt(400, 1), 5)
    engine.step()
    engine.add_offline("next", prompt(400, 2), 5)
    engine.add("online", prompt(100), 5)
    assert scheduled(engine) == {"online": 100}
    assert scheduled(engine) == {"online": 1, "offline": 127}


def test_it_goes_on_although_there_is_an_arrival_in_every_iteration(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=128, max_num_seqs=4))
    engine.add_offline("offline", prompt(400, 1), 5)
    engine.step()
    for number, computed in enumerate([128, 236, 344]):
        engine.add(f"online-{number}", prompt(20, 10 + number), 1)
        assert scheduled(engine) == {f"online-{number}": 20, "offline": min(108, 400 - computed)}
    assert not engine.scheduler.scheduler_config.long_prefill_token_threshold


def test_where_the_operator_limits_chunks_that_limit_holds(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=128, max_num_seqs=4, long_prefill_token_threshold=120))
    engine.add_offline("offline", prompt(400, 1), 5)
    engine.step()
    engine.add("online", prompt(20), 5)
    assert scheduled(engine) == {"online": 20}
    assert engine.scheduler.scheduler_config.long_prefill_token_threshold == 120


def test_the_class_of_a_request_decides_its_objective(start: Start) -> None:
    classes = Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=200.5), Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=80.5)
    for priority, limit_ms in ((0, 200.5), (1, 80.5), (2, 80.5)):
        engine = start(EngineSize(max_num_batched_tokens=512), *classes)
        engine.add("online", prompt(10), 30, priority=priority)
        engine.step()
        engine.add_offline("offline", prompt(400, 1), 5)
        assert sum(scheduled(engine).values()) == int((limit_ms - 35) / 1.5)


def test_an_iteration_without_online_requests_is_full_before_the_first_of_them_comes(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=256), Objective(ttft_slo_ms=200.0, tbt_slo_ms=50.0))
    for number in range(3):
        engine.add_offline(f"offline-{number}", prompt(200, number), 5)
    assert sum(scheduled(engine).values()) == 256


def test_later_it_is_as_long_as_an_arrival_can_bear(start: Start) -> None:
    engine = start(EngineSize(max_num_batched_tokens=256), Objective(ttft_slo_ms=300.0, tbt_slo_ms=INFINITE))
    engine.add("online", prompt(40), 1)
    engine.run()
    for number in range(3):
        engine.add_offline(f"offline-{number}", prompt(200, number + 1), 5)
    own_ms = 35 + 1.5 * 40
    assert fixed_cost_ms(engine.step()) <= 300 - own_ms  # type: ignore[arg-type]


@pytest.mark.parametrize("pass_tokens", [1, 5, 15])
def test_an_offline_pass_computes_something_however_small_it_is_to_be(start: Start, pass_tokens: int) -> None:
    engine = start()
    engine.scheduler._settings.knobs = Knobs(offline_pass_tokens=pass_tokens)
    engine.add_offline("offline", prompt(100), 3)
    engine.run(max_steps=400)
    assert engine.finished == ["offline"]


def test_a_pass_that_could_take_fewer_tokens_than_a_chunk_takes_a_chunk(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit leaves room for some tokens, but not for the 16 that are worth a chunk."""
    monkeypatch.setattr(token_budget, "SMALLEST_WAIT_OVERHEADS", 1.0)
    engine = start(EngineSize(), Objective(ttft_slo_ms=100.0, tbt_slo_ms=INFINITE))
    engine.add("online", prompt(27), 1)
    engine.run()
    limit_ms = 100.0 - (35 + 1.5 * 27)
    assert limit_ms < 35
    engine.scheduler._settings.objectives = (Objective(ttft_slo_ms=120.0, tbt_slo_ms=INFINITE),)
    engine.add_offline("offline", prompt(100, 1), 3)
    assert scheduled(engine) == {"offline": 16}
    engine.run(max_steps=100)


def test_knobs_of_the_ablation_switch_the_budget_off_and_change_objectives(start: Start) -> None:
    page = EnginePage.create()
    try:
        size = EngineSize(max_num_batched_tokens=256)
        engine = start(size, Objective(ttft_slo_ms=INFINITE, tbt_slo_ms=100.0), page=page.path)
        engine.add("online", prompt(10), 30)
        engine.step()
        engine.add_offline("offline", prompt(500, 1), 5)
        assert sum(scheduled(engine).values()) == int((100 - 35) / 1.5)
        page.write_knobs(Knobs(tbt_slo_ms=70.5))
        assert sum(scheduled(engine).values()) == int((70.5 - 35) / 1.5)
        page.write_knobs(Knobs(token_budget_off=1.0))
        assert sum(scheduled(engine).values()) == 256
        counters = page.read_counters()
        assert (counters.iterations, counters.mixed_iterations) == (4, 3)
        assert counters.offline_prefill_tokens == sum((int(65 / 1.5), int(35.5 / 1.5), 256)) - 3
    finally:
        page.remove()


# What vLLM does besides.


def test_async_scheduling_keeps_a_batch_in_flight_and_the_answers_are_the_same(start: Start) -> None:
    engine = start(EngineSize(max_num_seqs=2, kv_blocks=14, max_model_len=128), async_scheduling=True)
    assert isinstance(engine.scheduler, AsyncCoServeScheduler)
    stops = [token for token in range(1_000) if token % 9 == 0]
    engine.add_offline("offline-0", prompt(50, 1), 30)
    engine.add_offline("offline-1", prompt(60, 2), 30)
    for _ in range(4):
        engine.step()
    engine.add("online", prompt(40, 3), 30, stop_token_ids=stops)
    preempted = engine.step()
    assert preempted is not None
    assert preempted.preempted_req_ids
    engine.run()
    assert engine.answers["online"] == sample_tokens(prompt(40, 3), 30, stops)
    assert len(engine.answers["online"]) < 30, "it stops by itself, with the next batch in flight"
    for number in range(2):
        assert engine.answers[f"offline-{number}"] == sample_tokens(prompt(50 + 10 * number, 1 + number), 30)


def test_scheduling_is_async_where_vllm_is_told_so(start: Start) -> None:
    assert type(start().scheduler) is CoServeScheduler
    assert type(start(async_scheduling=True).scheduler) is AsyncCoServeScheduler


def test_an_online_request_whose_grammar_is_ready_does_not_wait_for_offline_ones(start: Start) -> None:
    engine = start(EngineSize(max_num_seqs=2))
    fill_slots(engine, [30, 40])
    request = engine.add("online", prompt(20, 3), 5)
    request.structured_output_request = mock.Mock(grammar=None)
    request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
    assert set(scheduled(engine)) == {"offline-30", "offline-40"}, "it does not take a slot before"
    request.structured_output_request.grammar = mock.Mock()
    assert engine.schedule().num_scheduled_tokens["online"] == 20


def test_a_stream_with_new_input_does_not_wait_for_offline_ones(start: Start) -> None:
    engine = start(EngineSize(max_num_seqs=2))
    engine.add("online", prompt(20), 2, resumable=True)
    while not engine.scheduler.num_waiting_for_streaming_input:
        engine.step()
    fill_slots(engine, [30])  # The stream keeps its slot.
    engine.add("online", prompt(8, 9), 2, resumable=True)
    assert engine.schedule().num_scheduled_tokens["online"] > 1


def test_what_a_connector_has_loaded_for_an_offline_request_does_not_pass_online_ones(start: Start) -> None:
    engine = start(EngineSize(max_num_seqs=1), kv_transfer=use_fake_connector())
    engine.add_offline("offline", [REMOTE_TOKEN, *prompt(60)], 5)
    for _ in range(6):
        if engine.scheduler.finished_recving_kv_req_ids:
            break
        engine.step()
    assert len(engine.scheduler.kv_holding_waiting) == 1
    assert engine.scheduler.finished_recving_kv_req_ids
    engine.add("online", prompt(20, 1), 2)
    assert list(scheduled(engine)) == ["online"]
    engine.run()
    assert engine.finished == ["online", "offline"]


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_an_online_request_whose_kv_is_loaded_takes_a_slot(start: Start, async_scheduling: bool) -> None:
    engine = start(EngineSize(max_num_seqs=2), kv_transfer=use_fake_connector(), async_scheduling=async_scheduling)
    engine.add("online", [REMOTE_TOKEN, *prompt(60)], 5)
    engine.step()
    fill_slots(engine, [20, 30])
    steps = 0
    while not engine.answers["online"]:
        engine.step()
        steps += 1
    assert steps <= 4


def test_a_slot_is_taken_from_a_request_whose_batch_is_in_flight(start: Start) -> None:
    """With a connector and asynchronous scheduling its blocks come free later only; the slot does at once."""
    engine = start(EngineSize(max_num_seqs=2), kv_transfer=use_fake_connector(), async_scheduling=True)
    fill_slots(engine, [20, 30])
    engine.add("online", prompt(10), 4)
    steps = 0
    while not engine.answers["online"]:
        engine.step()
        steps += 1
    assert steps <= 4
    engine.run()
    assert engine.answers["offline-20"] == sample_tokens(prompt(20, 500), 60)
    assert engine.answers["offline-30"] == sample_tokens(prompt(30, 501), 60)


@pytest.mark.parametrize("online", [prompt(50), [REMOTE_TOKEN, *range(1, 50)]], ids=["computed", "loaded"])
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_loaded_offline_requests_do_not_lock_an_arrival_out(start: Start, slots: int, online: list[int]) -> None:
    engine = start(EngineSize(kv_blocks=7, max_num_seqs=slots, max_model_len=64), kv_transfer=use_fake_connector())
    for number in range(2):
        engine.add_offline(f"offline-{number}", [REMOTE_TOKEN, number, *range(2, 20)], 4)
    for _ in range(3):
        engine.step()
    engine.add("online", online, 4)
    engine.run(max_steps=300)
    assert set(engine.finished) == {"online", "offline-0", "offline-1"}


def test_requests_that_a_connector_holds_and_one_that_runs_do_not_wait_for_each_other(start: Start) -> None:
    engine = start(EngineSize(kv_blocks=7, max_model_len=64), kv_transfer=use_fake_connector())
    engine.add_offline("offline-0", [REMOTE_TOKEN] * 57, 5)
    engine.add_offline("offline-1", [REMOTE_TOKEN, *prompt(40)], 20)
    engine.run(max_steps=200)
    assert set(engine.finished) == {"offline-0", "offline-1"}


def test_an_iteration_never_ends_in_blocks_that_were_hashed_and_not_computed(start: Start) -> None:
    """vLLM 0.32 leaves those of a request that it preempts after giving it tokens in the prefix cache."""
    size = EngineSize(kv_blocks=25, block_size=4, max_model_len=64, long_prefill_token_threshold=24)
    outcomes = {}
    for kind in ("vllm", "conserve"):
        engine = FakeEngine(make_scheduler(kind, make_config(size)), VirtualClock())  # type: ignore[arg-type]
        engine.add("other", prompt(4, 3), 20)
        engine.add("first", prompt(60, 1), 3, priority=1)
        engine.step()
        # In the third step the first one gets 3 blocks and is preempted for the second one.
        engine.add("second", prompt(32, 2), 1)
        try:
            engine.run()
        except WrongBatch as error:
            outcomes[kind] = str(error)
        else:
            outcomes[kind] = "right" if engine.answers["first"] == sample_tokens(prompt(60, 1), 3) else "wrong"
    assert outcomes["conserve"] == "right"
    assert outcomes["vllm"] != "right", "vLLM does not do it any more: preempt_beforehand can go"


def test_reset_of_the_prefix_cache_and_cancellations_leave_nothing_behind(start: Start) -> None:
    engine = start(EngineSize(max_num_seqs=3))
    fill_slots(engine, [20, 30])
    engine.add("online", prompt(10), 20)
    engine.add_offline("never-started", prompt(40, 9), 3)
    engine.step()
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    for request_id in ("offline-20", "online", "never-started"):
        engine.cancel(request_id)
    engine.run()
    assert engine.finished == ["offline-30"]
    assert engine.answers["offline-30"] == sample_tokens(prompt(30, 501), 60)
    assert free_blocks(engine) == EngineSize().kv_blocks - 1


def test_an_untested_vllm_is_refused_at_start(start: Start) -> None:
    with (
        mock.patch.object(scheduler_module, "check_version", side_effect=RuntimeError("vLLM 9.9 is installed")),
        pytest.raises(RuntimeError, match=r"vLLM 9\.9"),
    ):
        start()
