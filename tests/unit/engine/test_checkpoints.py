"""KV blocks of offline requests go to host memory and come back, on an engine without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from vllm.v1.kv_cache_interface import SlidingWindowSpec

from conserve.engine.checkpoints import _InFlight
from conserve.engine.copy_plan import CopyPlan, read_copies
from conserve.engine.page import EnginePage, Knobs
from conserve.engine.testing.scheduling import EngineSize, FakeEngine
from conserve.engine.testing.worker import sample_tokens
from conserve.engine.vllm_blocks_compat import explain_uncopyable
from conserve.engine.vllm_compat import SchedulerOutput
from tests.unit.engine.engines import Start, prompt, run_until_answered, running

SMALL = EngineSize(kv_blocks=17)
SIZE = SMALL.block_size


@pytest.fixture
def page() -> Iterator[EnginePage]:
    page = EnginePage.create()
    yield page
    page.remove()


def interrupt(engine: FakeEngine, times: int, request_id: str = "offline") -> None:
    """Online requests take the KV blocks of an offline one, again and again."""
    for number in range(times):
        answered = len(engine.answers[request_id])
        while len(engine.answers[request_id]) < answered + 4:
            engine.step()
        engine.add(f"online-{number}", prompt(220, 500 + number), 4)
        while f"online-{number}" not in engine.finished:
            engine.step()
        answered = len(engine.answers[request_id])
        while len(engine.answers[request_id]) == answered:
            engine.step()


def finish(engine: FakeEngine, lengths: dict[str, tuple[list[int], int]]) -> None:
    """Lets everybody come to their end, with the right answers and nothing left behind."""
    engine.run()
    for request_id, (tokens, max_tokens) in lengths.items():
        assert engine.answers[request_id] == sample_tokens(tokens, max_tokens)
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    assert checkpoints._pool.used_slots == 0
    assert checkpoints._landings.blocks == []
    pool = engine.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1


def start_small(
    start: Start, *, slots: int = 64, fails: Callable[[CopyPlan], bool] = lambda plan: False, **rest: object
) -> FakeEngine:
    engine = start(SMALL, has_safepoints=True, host_slots=slots, copy_fails=fails, **rest)
    engine.add_offline("offline", prompt(150), 60)
    return engine


EXPECTED = {"offline": (prompt(150), 60)}


def test_nothing_is_copied_while_there_is_room(start: Start) -> None:
    engine = start(EngineSize(kv_blocks=400), has_safepoints=True, host_slots=64)
    for number in range(4):
        engine.add_offline(f"offline-{number}", prompt(150, number), 40)
    engine.add("online", prompt(60, 9), 20)
    engine.run()
    counted = engine.scheduler._counters
    assert (counted.saved_blocks, counted.restored_blocks, counted.host_slots) == (0, 0, 64)


def test_a_preempted_request_goes_on_where_it_was(start: Start) -> None:
    engine = start_small(start)
    interrupt(engine, 1)
    counted = engine.scheduler._counters
    assert counted.offline_preemptions == 1
    recomputed = counted.offline_recomputed_tokens
    assert recomputed > 100, "nobody could know of the first one"
    interrupt(engine, 4)
    assert counted.offline_preemptions >= 5
    assert counted.restored_blocks >= 4 * 6
    assert counted.offline_recomputed_tokens == recomputed
    assert counted.copied_blocks > 0
    finish(engine, EXPECTED)


def test_blocks_are_copied_as_they_fill_and_once(start: Start) -> None:
    engine = start_small(start)
    interrupt(engine, 3)
    finish(engine, EXPECTED)
    planned = engine._worker.copies.planned
    assert 0 < sum(len(plan.saves) for plan in planned) <= (150 + 60) // SIZE
    assert sum(len(plan.all_saves) for plan in planned) == engine.scheduler._counters.saved_blocks


def test_the_last_block_comes_back_although_it_is_not_full(start: Start) -> None:
    engine = start_small(start)
    interrupt(engine, 2)
    counted = engine.scheduler._counters
    recomputed, restored = counted.offline_recomputed_tokens, counted.restored_blocks
    for number in range(SIZE):
        engine.add(f"later-{number}", prompt(220, 900 + number), 2)
        while f"later-{number}" not in engine.finished:
            engine.step()
        answered = len(engine.answers["offline"])
        while len(engine.answers["offline"]) == answered:
            engine.step()
    assert counted.offline_recomputed_tokens == recomputed
    assert counted.restored_blocks > restored
    finish(engine, EXPECTED)


@pytest.mark.parametrize("fails", [None, "first_saves", "loads"])
def test_who_has_lost_its_slot_only_gets_its_last_block_back(start: Start, fails: str | None) -> None:
    engine = start(
        EngineSize(kv_blocks=400, max_num_seqs=1),
        has_safepoints=True,
        host_slots=64,
        copy_fails=lambda plan: fails is not None and bool(getattr(plan, fails)),
    )
    engine.add_offline("offline", *EXPECTED["offline"])
    counted = engine.scheduler._counters
    interrupt(engine, 3)
    assert counted.offline_preemptions >= 3
    assert 0 < counted.saved_blocks <= counted.offline_preemptions
    assert (counted.offline_recomputed_tokens == 0) == (fails is None)
    assert bool(counted.failed_copies) == (fails is not None)
    finish(engine, EXPECTED)


def test_a_last_block_is_of_no_use_without_those_before_it(start: Start) -> None:
    """Who lost its slot only has full blocks in the prefix cache, from which others take them."""
    engine = start(EngineSize(kv_blocks=100, max_num_seqs=1, max_model_len=2_048), has_safepoints=True, host_slots=64)
    engine.add_offline("offline", *EXPECTED["offline"])
    run_until_answered(engine, "offline")
    engine.add("online", prompt(40, 500), 4)
    engine.step()
    engine.add("long", prompt(1_500, 600), 4)
    while "long" not in engine.finished:
        engine.step()
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    assert (checkpoints._pool.count_saved("offline"), checkpoints._pool.used_slots) == (0, 1)
    finish(engine, EXPECTED)
    assert engine.scheduler._counters.restored_blocks == 0


def test_a_last_block_is_put_behind_the_blocks_that_it_came_with_only(start: Start) -> None:
    """Another request may have put more of the same text into the prefix cache meanwhile."""
    engine = start_beside_another(start)
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    next_with_loads(engine)
    landing = checkpoints._landings._held["offline"]
    assert landing.tail_tokens
    request = engine.scheduler.requests["offline"]
    for blocks, is_extended in ((landing.landed.blocks, True), ([*landing.landed.blocks, landing.landed.tail], False)):
        found = engine.scheduler.kv_cache_manager.create_kv_cache_blocks((blocks,))
        hit = (found, len(blocks) * SIZE)
        assert (checkpoints.extend_hit(request, hit) != hit) == is_extended
    finish(engine, TWO)


def test_a_batch_that_comes_back_late_leaves_who_was_preempted_since_its_last_block(start: Start) -> None:
    engine = start_small(start)
    engine.step()
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    for name in ("waits", "runs"):
        checkpoints._pool.add_tail(name, 3, 5)
        checkpoints._unproved[name] = checkpoints._batches
    checkpoints._preempted.add("waits")
    checkpoints._in_flight.append(_InFlight(checkpoints._batches, {"waits": 1, "runs": 1}))
    checkpoints.end(None, None)
    assert checkpoints._pool.find_tail("waits") is not None
    assert checkpoints._pool.find_tail("runs") is None
    checkpoints.release_gone(["waits"])
    finish(engine, EXPECTED)


def test_a_last_block_that_is_copied_is_used_last_by_others(start: Start) -> None:
    engine = start_small(start)
    interrupt(engine, 2)
    (request,) = engine.scheduler.running
    (manager,) = engine.scheduler.kv_cache_manager.coordinator.single_type_managers
    last = manager.req_to_blocks["offline"][-1].block_id
    free = engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    assert request.num_computed_tokens % SIZE
    engine.add("online", prompt((free + 1) * SIZE - 4, 900), 3)
    engine.step()
    assert running(engine) == ["online"]
    assert last not in {block.block_id for block in manager.req_to_blocks["online"]}
    finish(engine, EXPECTED)


TWO = {"offline": (prompt(130), 60), "other": (prompt(20, 7), 40)}


def start_beside_another(start: Start) -> FakeEngine:
    """A request is about to come back, and another one runs."""
    engine = start(EngineSize(kv_blocks=22), has_safepoints=True, host_slots=64)
    engine.add_offline("offline", *TWO["offline"])
    interrupt(engine, 2)
    engine.add_offline("other", *TWO["other"])
    run_until_answered(engine, "other")
    engine.add("online", prompt(220, 900), 3)
    while "online" not in engine.finished:
        engine.step()
    return engine


def test_a_request_waits_a_step_for_its_blocks_while_others_are_computed(start: Start) -> None:
    engine = start_beside_another(start)
    assert "other" not in engine.finished
    first, copies = next_with_loads(engine)
    assert "other" in first.num_scheduled_tokens
    assert "offline" not in first.num_scheduled_tokens
    following = first
    for _ in range(4):
        step = engine.step()
        assert step is not None
        assert "other" in step.num_scheduled_tokens
        following = step
        if "offline" in step.num_scheduled_tokens:
            break
    assert "offline" in following.num_scheduled_tokens
    assert following.num_scheduled_tokens["offline"] <= SIZE
    waiting = read_copies(following)
    assert waiting is not None
    assert waiting.wait_for == copies.job
    finish(engine, TWO)


def test_what_is_given_back_before_it_has_come_is_not_found_in_the_prefix_cache(start: Start) -> None:
    engine = start_beside_another(start)
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    checkpoints._saving._block_s = 1.0
    _, copies = next_with_loads(engine)
    assert len(copies.loads) == 1, "a piece is a block, if copying one takes so long"
    assert checkpoints.release_landed()
    finish(engine, TWO)


def test_a_copy_that_had_to_wait_is_soon_forgotten(start: Start) -> None:
    checkpoints = start_beside_another(start).scheduler._kv.checkpoints
    assert checkpoints is not None
    saving = checkpoints._saving
    saving._block_s = 0.001
    saving.note_copied(1, 1.0)
    assert saving._block_s == pytest.approx(0.0016, rel=0.05)
    for _ in range(3):
        saving.note_copied(1, 0.001)
    assert saving._block_s < 0.0011
    for _ in range(40):
        saving.note_copied(1, 0.1)
    assert saving._block_s == pytest.approx(0.1, rel=0.1), "where all of them take long, that is how long they take"


def test_where_nobody_else_runs_blocks_come_with_the_batch_that_needs_them(start: Start) -> None:
    engine = start_small(start)
    interrupt(engine, 2)
    engine.add("online", prompt(220, 900), 3)
    while "online" not in engine.finished:
        engine.step()
    batch, copies = next_with_loads(engine)
    assert "offline" in batch.num_scheduled_tokens
    assert copies.wait_for == copies.job
    finish(engine, EXPECTED)


def test_of_several_that_were_preempted_each_comes_back(start: Start) -> None:
    engine = start(EngineSize(kv_blocks=41), has_safepoints=True, host_slots=64)
    texts = {f"offline-{number}": (prompt(150, number), 60) for number in range(3)}
    for request_id, (tokens, max_tokens) in texts.items():
        engine.add_offline(request_id, tokens, max_tokens)
    counted = engine.scheduler._counters
    for burst in range(4):
        for _ in range(10):
            engine.step()
        preemptions, recomputed = counted.offline_preemptions, counted.offline_recomputed_tokens
        for number in range(2):
            engine.add(f"online-{burst}-{number}", prompt(250, 500 + 10 * burst + number), 3)
        while f"online-{burst}-1" not in engine.finished or engine.scheduler.waiting.backlog:
            engine.step()
    # By now it is known that bursts come.
    assert counted.offline_preemptions - preemptions >= 2
    assert counted.offline_recomputed_tokens - recomputed <= (counted.offline_preemptions - preemptions) * SIZE
    finish(engine, texts)


def test_many_that_were_preempted_come_back_together(start: Start) -> None:
    size = EngineSize(kv_blocks=200, max_num_seqs=16, max_num_batched_tokens=4_096, max_model_len=4_096)
    engine = start(size, has_safepoints=True, host_slots=400)
    texts = {f"offline-{number}": (prompt(100, number), 200) for number in range(16)}
    for request_id, (tokens, max_tokens) in texts.items():
        engine.add_offline(request_id, tokens, max_tokens)
    counted = engine.scheduler._counters
    waiting = steps = 0
    for burst in range(3):
        for _ in range(12):
            engine.step()
        recomputed = counted.offline_recomputed_tokens
        engine.add(f"online-{burst}", prompt(2_400, 500 + burst), 3)
        while f"online-{burst}" not in engine.finished:
            engine.step()
        assert len(engine.scheduler.waiting.backlog) >= 8
        waiting += len(engine.scheduler.waiting.backlog)
        while engine.scheduler.waiting.backlog:
            engine.step()
            steps += 1
    assert steps < waiting, "one after the other they take nearly twice as many steps"
    assert counted.offline_recomputed_tokens == recomputed
    finish(engine, texts)


def test_a_request_that_has_no_room_for_its_blocks_waits_for_it(start: Start) -> None:
    engine = start(EngineSize(kv_blocks=22), has_safepoints=True, host_slots=64)
    engine.add_offline("offline", prompt(130), 60)
    interrupt(engine, 2)
    engine.add("online", prompt(220, 900), 40)
    engine.step()
    assert running(engine) == ["online"]
    recomputed = engine.scheduler._counters.offline_recomputed_tokens
    while "online" not in engine.finished:
        engine.step()
    finish(engine, {"offline": (prompt(130), 60)})
    assert engine.scheduler._counters.offline_recomputed_tokens - recomputed <= SIZE


def next_with_loads(engine: FakeEngine) -> tuple[SchedulerOutput, CopyPlan]:
    """The next batch with which blocks come back."""
    for _ in range(50):
        batch = engine.step()
        copies = read_copies(batch)
        if batch is not None and copies is not None and copies.loads:
            return batch, copies
    raise AssertionError("none came back")


def test_copies_that_fail_are_computed_again(start: Start) -> None:
    engine = start_small(start, fails=lambda plan: bool(plan.loads))
    interrupt(engine, 4)
    counted = engine.scheduler._counters
    assert counted.restored_blocks > 0
    assert counted.failed_copies > 0
    assert counted.offline_recomputed_tokens > 3 * 100
    finish(engine, EXPECTED)


def test_what_could_not_be_saved_does_not_come_back(start: Start) -> None:
    engine = start_small(start, fails=lambda plan: bool(plan.all_saves))
    interrupt(engine, 4)
    counted = engine.scheduler._counters
    assert counted.failed_copies > 0
    assert counted.offline_recomputed_tokens > 3 * 100
    assert not engine._worker.copies.host
    finish(engine, EXPECTED)


def test_after_some_failures_in_a_row_nothing_is_copied_any_more(start: Start) -> None:
    engine = start_small(start, fails=lambda plan: True)
    interrupt(engine, 2)
    engine.add_offline("other", prompt(140, 3), 60)
    interrupt(engine, 4)
    planned = len(engine._worker.copies.planned)
    assert engine.scheduler._kv.checkpoints is not None
    assert not engine.scheduler._kv.checkpoints.is_on
    interrupt(engine, 2)
    assert len(engine._worker.copies.planned) == planned
    finish(engine, EXPECTED | {"other": (prompt(140, 3), 60)})


def test_what_is_computed_in_the_same_batch_is_not_saved(start: Start) -> None:
    engine = start(EngineSize(kv_blocks=40), has_safepoints=True, host_slots=64)
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    checkpoints._saving.losses.observe(engine.clock.now_s, 10_000)
    common = prompt(96)
    texts = {f"offline-{number}": ([*common, *range(700 + number, 716 + number)], 30) for number in range(2)}
    for request_id, (tokens, max_tokens) in texts.items():
        engine.add_offline(request_id, tokens, max_tokens)
    batch = engine.step()
    assert batch is not None
    # The second one has found the beginning in the prefix cache, which the first one computes now.
    assert batch.num_scheduled_tokens == {"offline-0": 112, "offline-1": 16}
    copies = read_copies(batch)
    assert copies is None or not copies.saves
    engine.step()
    assert engine.scheduler._counters.saved_blocks > 0
    finish(engine, texts)


@pytest.mark.parametrize("layer", [1, 7])
def test_blocks_of_a_stopped_pass_do_not_count_as_saved(start: Start, layer: int) -> None:
    is_stopping = False
    size = EngineSize(kv_blocks=40)
    engine = start(size, has_safepoints=True, host_slots=64, choose_stop=lambda plan: layer if is_stopping else None)
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    checkpoints._saving.losses.observe(engine.clock.now_s, 10_000)
    texts = {"offline": (prompt(150), 20), "other": (prompt(200, 3), 20)}
    for request_id, (tokens, max_tokens) in texts.items():
        engine.add_offline(request_id, tokens, max_tokens)
    saved_beside_stops = 0
    for _ in range(12):
        is_stopping = not is_stopping
        stops = engine.scheduler._counters.stops
        copies = read_copies(engine.step())
        if copies is not None and engine.scheduler._counters.stops > stops:
            saved_beside_stops += len(copies.saves)
        for request in engine.scheduler.running:
            assert checkpoints.count_saved_blocks(request) * SIZE <= request.num_computed_tokens
    assert saved_beside_stops > 0
    is_stopping = False
    finish(engine, texts)


def test_a_request_that_is_cancelled_while_its_blocks_are_copied(start: Start) -> None:
    engine = start_small(start, slots=12)
    interrupt(engine, 2)
    engine.add_offline("going", prompt(100, 4), 60)
    copies = engine._worker.copies
    for _ in range(200):
        engine.step()
        if any(plan.saves for plan in copies.waiting) and "going" in engine.scheduler.requests:
            break
    assert any(plan.saves for plan in copies.waiting)
    engine.cancel("going")
    engine.cancel("offline")
    assert engine.scheduler._counters.host_blocks == 0
    # Its slots are written to before those who come next write to them.
    engine.add_offline("next", prompt(150, 5), 60)
    interrupt(engine, 3, "next")
    assert engine.scheduler._counters.restored_blocks > 0
    finish(engine, {"next": (prompt(150, 5), 60)})


def test_a_pool_that_is_exactly_full_covers_everything(start: Start) -> None:
    engine = start_small(start, slots=(150 + 60) // SIZE)
    interrupt(engine, 6)
    counted = engine.scheduler._counters
    assert (counted.uncovered_blocks, counted.dropped_blocks) == (0, 0)
    assert counted.restored_blocks > 0
    finish(engine, EXPECTED)


def test_a_full_pool_keeps_what_it_has_and_counts_the_rest(start: Start) -> None:
    engine = start_small(start, slots=5)
    interrupt(engine, 4)
    counted = engine.scheduler._counters
    assert counted.uncovered_blocks > 0
    assert counted.host_blocks <= 5
    assert counted.restored_blocks >= 3 * 2
    finish(engine, EXPECTED)


def test_what_is_saved_is_not_kept_free_for_bursts_besides(start: Start) -> None:
    def count_running(slots: int) -> int:
        engine = start(EngineSize(kv_blocks=41), has_safepoints=True, host_slots=slots)
        texts = {f"offline-{number}": (prompt(70, number), 60) for number in range(8)}
        for request_id, (tokens, max_tokens) in texts.items():
            engine.add_offline(request_id, tokens, max_tokens)
        steps = 0
        for turn in range(60):
            if turn % 10 == 0:
                engine.add(f"online-{turn}", prompt(120, 500 + turn), 2)
            engine.step()
            assert f"online-{turn - 1}" not in engine.answers or engine.answers[f"online-{turn - 1}"], "it waited"
            steps += sum(request.priority > 0 for request in engine.scheduler.running)
        engine.run()
        for request_id, (tokens, max_tokens) in texts.items():
            assert engine.answers[request_id] == sample_tokens(tokens, max_tokens)
        return steps

    assert count_running(64) > 1.1 * count_running(0)


def test_who_is_cancelled_leaves_nothing_behind(start: Start) -> None:
    engine = start_small(start)
    interrupt(engine, 2)
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    assert checkpoints._pool.used_slots > 0
    engine.cancel("offline")
    assert checkpoints._pool.used_slots == 0
    finish(engine, {})


def test_a_reset_forgets_what_is_in_host_memory(start: Start) -> None:
    engine = start_small(start)
    interrupt(engine, 2)
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert checkpoints._pool.used_slots == 0
    finish(engine, EXPECTED)


def test_a_reset_that_is_refused_forgets_nothing(start: Start) -> None:
    engine = start_small(start)
    interrupt(engine, 2)
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    used = checkpoints._pool.used_slots
    assert used > 0
    assert not engine.scheduler.reset_prefix_cache()
    assert checkpoints._pool.used_slots == used
    finish(engine, EXPECTED)


def test_switched_off_nothing_is_copied(start: Start, page: EnginePage) -> None:
    page.write_knobs(Knobs(checkpoints_off=1))
    engine = start_small(start, page=page.path)
    interrupt(engine, 3)
    counted = engine.scheduler._counters
    assert (counted.saved_blocks, counted.restored_blocks) == (0, 0)
    finish(engine, EXPECTED)


def test_requests_with_a_common_beginning_have_it_saved_once(start: Start) -> None:
    engine = start(EngineSize(kv_blocks=25), has_safepoints=True, host_slots=64)
    common = prompt(96)
    texts = {f"offline-{number}": ([*common, *range(700 + number, 740 + number)], 30) for number in range(3)}
    for request_id, (tokens, max_tokens) in texts.items():
        engine.add_offline(request_id, tokens, max_tokens)
    for number in range(6):
        for _ in range(6):
            engine.step()
        engine.add(f"online-{number}", prompt(200, 500 + number), 3)
    finish(engine, texts)
    counted = engine.scheduler._counters
    assert counted.restored_blocks > 0
    planned = engine._worker.copies.planned
    assert sum(len(plan.all_saves) for plan in planned) == counted.saved_blocks


def test_where_blocks_cannot_be_copied_the_reason_is_given(start: Start) -> None:
    engine = start(SMALL, has_safepoints=True)
    assert explain_uncopyable(engine.scheduler) is None
    spec = engine.scheduler.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    window = SlidingWindowSpec(16, num_kv_heads=1, head_size=1, dtype=spec.dtype, sliding_window=64)
    engine.scheduler.kv_cache_config.kv_cache_groups[0].kv_cache_spec = window
    reason = explain_uncopyable(engine.scheduler)
    assert reason is not None
    assert "SlidingWindowSpec" in reason
    engine.scheduler.kv_cache_manager.block_pool.enable_caching = False
    assert explain_uncopyable(engine.scheduler) == (
        "enable_prefix_caching is off: blocks are known by the hashes of the prefix cache"
    )


def test_host_memory_for_less_than_a_block_is_refused_by_the_name_of_the_setting(start: Start) -> None:
    with pytest.raises(ValueError, match=r"engine\.host_kv_gib: 0\.0000 GiB hold no KV block"):
        start(SMALL, has_safepoints=True, host_slots=0.5)


def test_without_safepoints_nothing_is_copied(start: Start) -> None:
    engine = start(SMALL, preempt="never", host_slots=64)
    assert engine.scheduler._kv.checkpoints is None


def test_ten_thousand_requests_leave_a_small_pool_empty(start: Start) -> None:
    size = EngineSize(kv_blocks=17, max_num_seqs=4, block_size=4, max_model_len=64)
    engine = start(size, has_safepoints=True, host_slots=12)
    for number in range(10_000):
        if number % 5:
            engine.add_offline(f"offline-{number}", prompt(30, number), 8)
        else:
            engine.add(f"online-{number}", prompt(30, number), 2)
        engine.step()
    engine.run(max_steps=100_000)
    assert len(engine.finished) == 10_000
    checkpoints = engine.scheduler._kv.checkpoints
    assert checkpoints is not None
    assert (checkpoints._pool.used_slots, checkpoints._landings.blocks, len(checkpoints._in_flight)) == (0, [], 0)
    # Bounded by the number of blocks, however many requests have come and gone.
    assert max(len(checkpoints._saved_by), len(checkpoints._loaded_by), len(checkpoints._landings._origins)) <= 17
    assert (checkpoints._unproved, checkpoints._saving._uncovered, checkpoints._saving._freed) == ({}, {}, {})
    assert not checkpoints._preempted
    counted = engine.scheduler._counters
    assert min(counted.saved_blocks, counted.restored_blocks) > 100
