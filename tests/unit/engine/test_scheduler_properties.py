"""Whatever arrives and however small the engine is: properties of the scheduler, on an engine without a model."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from conserve.engine import scheduler as scheduler_module
from conserve.engine.deadlines import Deadlines
from conserve.engine.lanes import is_offline
from conserve.engine.offline_share import OfflineShare, share_out
from conserve.engine.online_demand import OnlineDemand, measure_demand, tokens_wanted
from conserve.engine.options import Objective
from conserve.engine.page import EnginePage, Knobs
from conserve.engine.step_plan import StepPlan, read_plan
from conserve.engine.testing.connector import REMOTE_TOKEN, use_fake_connector
from conserve.engine.testing.scheduling import EngineSize, FakeEngine, VirtualClock, make_config, make_scheduler
from conserve.engine.testing.worker import LAYERS, FakeWorker, extend, sample_tokens
from conserve.engine.vllm_compat import Request, SchedulerOutput, is_running
from conserve.policy.latency import IterationShape
from conserve.policy.priority import OFFLINE_PRIORITY
from conserve.policy.token_budget import SMALLEST_CHUNK_TOKENS

MAX_STEPS = 4_000
INFINITE = float("inf")


@dataclass(frozen=True)
class Arrival:
    """A request. It shares the first `shared` tokens of its prompt with all others of its family."""

    priority: int
    steps_later: int
    family: int
    shared: int
    own: int
    max_tokens: int
    cancelled_after: int | None = None
    stops: bool = False

    def prompt(self, index: int) -> list[int]:
        first = [self.family] if self.family == REMOTE_TOKEN and not self.shared else []
        return (
            [self.family] * self.shared
            + first
            + [100 + (index * 7 + place) % 800 for place in range(self.own - len(first))]
        )


@dataclass(frozen=True)
class Scenario:
    size: EngineSize
    objectives: tuple[Objective, ...]
    knobs: Knobs
    async_scheduling: bool
    runner: int
    arrivals: tuple[Arrival, ...]
    connector: bool = False
    stops: tuple[int, ...] = ()
    """Layers before which batches are stopped, one after the other; LAYERS lets one come to its end."""
    host_slots: int = 0
    early_copies: tuple[int, ...] = (0,)
    """Copies made with each batch before anything waits for them, one number after the other."""
    failing_copies: tuple[bool, ...] = (False,)
    """Which of the copies fail, one after the other."""


def limits() -> st.SearchStrategy[float]:
    return st.sampled_from([20.0, 120.0, 400.0, 2_000.0, INFINITE])


@st.composite
def scenarios(draw: st.DrawFn, *, connector: bool = False, stops: bool = False, checkpoints: bool = False) -> Scenario:
    max_model_len = draw(st.sampled_from([64, 160, 320]))
    block_size = draw(st.sampled_from([4, 16]))
    least_blocks = max_model_len // block_size + 1
    max_num_seqs = draw(st.integers(1, 8))
    size = EngineSize(
        kv_blocks=1 + draw(st.integers(least_blocks, 4 * least_blocks)),
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_active_seqs=draw(st.none() | st.integers(1, max_num_seqs)),
        max_num_batched_tokens=draw(st.sampled_from([16, 64, 256])),
        max_model_len=max_model_len,
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 24])),
    )
    objectives = tuple(
        Objective(ttft_slo_ms=draw(limits()), tbt_slo_ms=draw(limits())) for _ in range(draw(st.integers(1, 2)))
    )
    knobs = Knobs(
        offline_pass_tokens=draw(st.sampled_from([0, 0, 32])),
        token_budget_off=draw(st.sampled_from([0, 0, 1])),
        prefix_order_off=draw(st.sampled_from([0, 0, 1])),
        resume_off=draw(st.sampled_from([0, 0, 1])) if stops else 0,
        max_num_batched_tokens=draw(st.sampled_from([0, 0, 16])),
    )
    arrivals = []
    for _ in range(draw(st.integers(1, 24))):
        prompt = draw(st.integers(1, max_model_len - 2))
        shared = draw(st.sampled_from([0, prompt // 2, prompt]))
        arrivals.append(
            Arrival(
                priority=draw(st.sampled_from([0, 1, OFFLINE_PRIORITY, OFFLINE_PRIORITY])),
                steps_later=draw(st.sampled_from([0, 0, 0, 1, 3, 12])),
                family=draw(st.sampled_from([0, 1, REMOTE_TOKEN if connector else 2])),
                shared=shared,
                own=prompt - shared,
                max_tokens=draw(st.integers(1, min(40, max_model_len - prompt))),
                cancelled_after=draw(st.sampled_from([None, None, None, None, 0, 1, 2, 9])),
                stops=draw(st.sampled_from([False, False, True])),
            )
        )
    return Scenario(
        size,
        objectives,
        knobs,
        async_scheduling=draw(st.booleans()),
        runner=draw(st.sampled_from([1, 2])),
        arrivals=tuple(arrivals),
        connector=connector,
        stops=tuple(draw(st.lists(st.integers(0, LAYERS), min_size=1, max_size=8))) if stops else (),
        host_slots=draw(st.sampled_from([1, 5, 40, 400])) if checkpoints else 0,
        early_copies=tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))) if checkpoints else (0,),
        failing_copies=draw(st.sampled_from([(False,), (False,), (False, False, True), (True,)]))
        if checkpoints
        else (),
    )


STOP_TOKENS = list(range(0, 1_000, 20))


class Watched(FakeEngine):
    """An engine that checks each batch."""

    def __init__(self, scenario: Scenario, page: EnginePage) -> None:
        config = make_config(
            scenario.size,
            objectives=scenario.objectives,
            page=page.path,
            async_scheduling=scenario.async_scheduling,
            kv_transfer=use_fake_connector() if scenario.connector else None,
            has_safepoints=bool(scenario.stops),
            host_slots=scenario.host_slots,
        )
        early, fails = itertools.cycle(scenario.early_copies), itertools.cycle(scenario.failing_copies or (False,))
        worker = FakeWorker(
            scenario.size.block_size,
            choose_stop=self.choose_stop if scenario.stops else None,
            copy_fails=lambda plan: next(fails),
            count_early=lambda: next(early),
        )
        super().__init__(make_scheduler("conserve", config, runner=scenario.runner), VirtualClock(), worker=worker)
        self.stoppable = 0
        self.scenario = scenario
        self.steps = 0
        self.offline_limit_ms = INFINITE
        self.share: OfflineShare | None = None
        self.demand: OnlineDemand | None = None
        self.deadlines: Deadlines | None = None
        self.largest_batch = scenario.size.max_num_batched_tokens
        if scenario.knobs.max_num_batched_tokens:
            self.largest_batch = min(self.largest_batch, int(scenario.knobs.max_num_batched_tokens))
        self._preempt_request = self.scheduler._preempt_request
        self.scheduler._preempt_request = self.watch_preemption

    def choose_stop(self, plan: StepPlan) -> int | None:
        stops = self.scenario.stops
        # In the end passes come to theirs: whoever is stopped at once for good gets nowhere.
        if self.stoppable >= 10 * len(stops):
            return None
        self.stoppable += 1
        layer = stops[self.stoppable % len(stops)]
        return layer if layer < LAYERS else None

    # What is checked at single points.

    def watch_preemption(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # One that has counted on what a stopped batch was to compute begins anew, whoever else is there.
        if not is_offline(request) and not (self.scenario.stops and kwargs["drop_stale_output"]):
            running = [one for one in self.scheduler.requests.values() if is_running(one)]
            # Blocks that an online request has as well would not become free.
            online = {block.block_id for one in running if not is_offline(one) for block in self.held(one)}
            holders = [
                one.request_id
                for one in running
                if is_offline(one) and any(block.block_id not in online for block in self.held(one))
            ]
            assert not holders, f"online {request.request_id} is preempted while offline {holders} have KV blocks"
        self._preempt_request(request, *args, **kwargs)

    def watch_demand(
        self, scheduler: Any, running: Any, waiting: Any, full_batch: int, deadlines: Deadlines
    ) -> OnlineDemand:
        self.demand, self.deadlines = measure_demand(scheduler, running, waiting, full_batch, deadlines), deadlines
        return self.demand

    def watch_share(self, scheduler: Any, offline: Any, demand: Any, model: Any, limit_ms: float, *rest: Any) -> Any:
        # Beside nobody: in an iteration without online requests, or in a slice between two of theirs.
        assert demand is self.demand or (self.scenario.stops and not demand.is_present)
        self.offline_limit_ms = limit_ms
        self.share = share_out(scheduler, offline, demand, model, limit_ms, *rest)
        return self.share

    # The engine's two halves.

    def schedule(self) -> SchedulerOutput:
        scheduler = self.scheduler
        self.steps += 1
        # What a connector loads takes blocks and a slot at times that only vLLM knows.
        due = [] if self.scenario.connector else self.find_due()
        self.share = self.demand = self.deadlines = None
        self.offline_limit_ms = INFINITE
        before = {request.request_id: request.num_computed_tokens for request in scheduler.running}
        wanting = {
            request.request_id: tokens_wanted(scheduler, request)
            for request in scheduler.running
            if not is_offline(request)
        }
        batch = super().schedule()
        scheduled = batch.num_scheduled_tokens
        online = [request_id for request_id in scheduled if not is_offline(scheduler.requests[request_id])]
        offline = [request_id for request_id in scheduled if is_offline(scheduler.requests[request_id])]

        plan = read_plan(batch)
        if self.demand is not None and self.demand.is_cut:
            assert not offline, f"offline {offline} run behind an online prompt that was cut short"
            self.check_cut(self.demand)
            due = [request for request in due if request in self.demand.arrivals]
        left_out = [request.request_id for request in due if request.request_id not in scheduled]
        assert not left_out, f"online {left_out} would have fitted without offline work; scheduled: {scheduled}"
        if offline and not self.scenario.connector:
            waiting = [request.request_id for request in self.waiting_online() if not is_stale(request)]
            assert not waiting, f"offline {offline} run while online {waiting} wait"
            late = [request_id for request_id, wanted in wanting.items() if wanted and request_id not in scheduled]
            is_slice = plan is not None and plan.until_s < INFINITE
            assert is_slice or not late, f"offline {offline} run while online {late} do not"
            if plan is not None and is_slice:
                self.check_slice(plan, late)
        if online and plan is not None:
            assert plan.rule == "never", "a batch with an online request may be stopped"
        # Those that a stop has sent back were preempted before the step.
        if not self.scenario.stops:
            assert not batch.preempted_req_ids & scheduled.keys(), "resumed in the step of the preemption"
        assert batch.total_num_scheduled_tokens <= self.largest_batch
        if not self.scenario.connector:
            self.check_budget(batch, online, offline)
            self.check_progress(batch, before)
        self.check_blocks()
        self.check_queues()
        return batch

    def update(self) -> None:
        super().update()
        self.check_host_memory()
        self.check_blocks()
        self.check_queues()

    # What is checked after them.

    def held(self, request: Request) -> list[Any]:
        return self.manager.req_to_blocks.get(request.request_id, [])

    @property
    def manager(self) -> Any:
        (manager,) = self.scheduler.kv_cache_manager.coordinator.single_type_managers
        return manager

    def waiting_online(self) -> list[Request]:
        return sorted(self.scheduler.waiting.online)

    def find_due(self) -> list[Request]:
        """Waiting online requests that would be taken in if there were no offline ones."""
        scheduler = self.scheduler
        running = [request for request in scheduler.running if not is_offline(request)]
        slots = min(scheduler.max_num_running_reqs, scheduler.max_num_active_reqs) - len(running)
        tokens = self.largest_batch
        kept = {block.block_id for request in running for block in self.held(request)}
        blocks = scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1 - len(kept)
        for request in running:
            wanted = tokens_wanted(scheduler, request)
            tokens -= wanted
            blocks -= self.count_blocks(request.num_computed_tokens + wanted) - len(self.held(request))
        due = []
        for request in self.waiting_online():
            if is_stale(request):
                continue
            blocks -= self.count_blocks(request.num_tokens)
            if slots <= 0 or tokens <= 0 or blocks < 0:
                break
            due.append(request)
            slots -= 1
            tokens -= request.num_tokens
        return due

    def count_blocks(self, tokens: int) -> int:
        return -(-tokens // self.scenario.size.block_size)

    def check_budget(self, batch: SchedulerOutput, online: list[str], offline: list[str]) -> None:
        if not offline or self.offline_limit_ms == INFINITE:
            return
        model = self.scheduler._model
        predicted_ms = model.predict_ms(self.shape(batch, [*online, *offline]))
        if online:
            assert self.demand is not None
            assert predicted_ms <= self.offline_limit_ms * (1 + 1e-9), (
                f"{predicted_ms:.1f} ms predicted for a limit of {self.offline_limit_ms:.1f}, "
                f"{model.predict_ms(self.shape(batch, online)):.1f} without offline work: {batch.num_scheduled_tokens}"
            )

    def check_slice(self, plan: StepPlan, late: list[str]) -> None:
        """Those who decode go on in time."""
        requests = [self.scheduler.requests[request_id] for request_id in late]
        assert all(not request.is_prefill_chunk for request in requests)
        objectives = self.scenario.objectives
        tbt_slos_ms = [objectives[min(request.priority, len(objectives) - 1)].tbt_slo_ms for request in requests]
        if not self.scenario.async_scheduling:  # where their last tokens may be on their way
            assert plan.until_s <= self.clock.now_s + min(tbt_slos_ms, default=INFINITE) / 1e3

    def check_cut(self, demand: OnlineDemand) -> None:
        """An online prompt is cut short where the batch is full or the next tokens are due, and gets on."""
        if demand.tokens >= self.largest_batch:
            return
        assert self.deadlines is not None
        shape = demand.shape
        decodes = IterationShape(decode_sequences=shape.decode_sequences, decode_context=shape.decode_context)
        limit_ms = self.deadlines.limit_prompts_ms(demand.decoding, decodes)
        more = demand.shape.add_prefill(SMALLEST_CHUNK_TOKENS, demand.prompts[-1][0].num_computed_tokens)
        assert demand.decoding
        assert self.scheduler._model.predict_ms(more) > limit_ms
        assert demand.shape.prefill_tokens > 0

    def shape(self, batch: SchedulerOutput, request_ids: list[str]) -> IterationShape:
        shape = IterationShape()
        for request_id in request_ids:
            tokens = batch.num_scheduled_tokens[request_id]
            request = self.scheduler.requests[request_id]
            context = request.num_computed_tokens - tokens
            if tokens == 1 and context >= request.num_prompt_tokens:
                shape = shape.add_decode(context)
            else:
                shape = shape.add_prefill(tokens, context)
        return shape

    def check_progress(self, batch: SchedulerOutput, before: dict[str, int]) -> None:
        """Without objectives, offline work is left out for want of tokens, slots or KV blocks only."""
        scheduler = self.scheduler
        free_limit = all(
            limit == INFINITE for one in self.scenario.objectives for limit in (one.ttft_slo_ms, one.tbt_slo_ms)
        )
        online = any(not is_offline(request) for request in scheduler.requests.values())
        pass_tokens = int(self.scenario.knobs.offline_pass_tokens) or self.largest_batch
        full = self.largest_batch if online else min(self.largest_batch, pass_tokens)
        if (
            not free_limit
            or self.scenario.stops
            or (self.demand is not None and self.demand.is_cut)
            or batch.preempted_req_ids
            or batch.total_num_scheduled_tokens >= full - SMALLEST_CHUNK_TOKENS
        ):
            return
        if scheduler.scheduler_config.long_prefill_token_threshold or self.waiting_online():
            return
        free_blocks = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        reserve = int(scheduler._counters.kv_reserve_blocks)
        for request in scheduler.running:
            if request.request_id in before and request.request_id not in batch.num_scheduled_tokens:
                idle = not tokens_wanted(scheduler, request) or free_blocks <= reserve + len(scheduler.running)
                assert idle, f"{request.request_id} is held back: {free_blocks} free blocks, {reserve} kept"
        if scheduler.waiting.backlog and len(scheduler.running) < min(
            self.scenario.size.max_num_seqs, scheduler.max_num_active_reqs
        ):
            request = scheduler.waiting.backlog.peek_next()
            needed = self.count_blocks(request.num_tokens)
            if not is_stale(request):
                assert needed + reserve + 2 * len(scheduler.running) + 1 > free_blocks, (
                    f"{request.request_id} waits for nothing: {needed} blocks of {free_blocks}, {reserve} kept"
                )

    def check_blocks(self) -> None:
        pool = self.scheduler.kv_cache_manager.block_pool
        # With a connector, blocks that a batch in flight may write to are free only after it.
        deferred = [blocks for _, blocks in self.scheduler.deferred_frees]
        held = [*self.manager.req_to_blocks.values(), *deferred, *self.landed()]
        users = Counter(block.block_id for blocks in held for block in blocks)
        for block in pool.blocks:
            if not block.is_null:
                assert block.ref_cnt == users[block.block_id], f"block {block.block_id}: {block.ref_cnt} references"
        assert pool.get_num_free_blocks() + len(users) == pool.num_gpu_blocks - 1
        entitled = {request.request_id for request in [*self.scheduler.running, *self.scheduler.kv_holding_waiting]}
        entitled |= self.scheduler.requests.keys() & self.loading_for_nobody()
        strangers = {request_id for request_id, blocks in self.manager.req_to_blocks.items() if blocks} - entitled
        assert not strangers, f"{strangers} have blocks and do not run"

    def landed(self) -> list[list[Any]]:
        """Blocks that are held for waiting requests."""
        checkpoints = self.scheduler._kv.checkpoints
        return checkpoints._landings.blocks if checkpoints is not None else []

    def check_host_memory(self) -> None:
        """Each slot holds what the tokens say by whose hash it is known."""
        checkpoints, copies = self.scheduler._kv.checkpoints, self._worker.copies
        if checkpoints is None:
            return
        pool, size = checkpoints._pool, self.scheduler.block_size
        unmade = {slot for plan in copies.waiting for _, slot in plan.all_saves}
        for request_id in pool.request_ids:
            request = self.scheduler.requests[request_id]
            slots = pool.find_slots(request_id, 0, pool.count_saved(request_id))
            expected = list(itertools.accumulate(request.all_token_ids[: len(slots) * size], extend, initial=0))[1:]
            for number, slot in enumerate(slots):
                if slot not in unmade and slot not in copies.bad_slots:
                    assert copies.host[slot] == expected[number * size : (number + 1) * size], f"slot {slot}"
            tail = pool.find_tail(request_id)
            if tail is not None and tail.slot not in unmade | copies.bad_slots:
                end = tail.blocks * size + tail.tokens
                expected = list(itertools.accumulate(request.all_token_ids[:end], extend, initial=0))[1:]
                assert copies.host[tail.slot][: tail.tokens] == expected[tail.blocks * size :], f"slot {tail.slot}"

    def check_queues(self) -> None:
        scheduler = self.scheduler
        assert len(scheduler.running) <= self.scenario.size.max_num_seqs
        everyone = [*scheduler.running, *scheduler.waiting, *scheduler.kv_holding_waiting]
        places = Counter(request.request_id for request in everyone)
        assert places.keys() == scheduler.requests.keys() - self.loading_for_nobody()
        assert set(places.values()) <= {1}
        assert self.scenario.connector or len(scheduler.kv_holding_waiting) == 0
        assert scheduler.max_num_running_reqs == self.scenario.size.max_num_seqs
        assert scheduler.max_num_active_reqs == (
            self.scenario.size.max_num_active_seqs or scheduler.max_num_running_reqs
        )
        assert not any(is_offline(request) for request in scheduler.waiting.online)
        assert bool(scheduler.waiting) == bool(scheduler.waiting.online), "offline work may be taken between steps"
        assert scheduler.kv_cache_manager.watermark_blocks == 0

    def loading_for_nobody(self) -> set[str]:
        """Cancelled requests whose blocks a transfer still writes to."""
        return {request.request_id for request in self.scheduler.requests.values() if request.is_finished()}

    # The whole run.

    def play(self) -> None:
        waiting = list(enumerate(self.scenario.arrivals))
        cancellations: list[tuple[int, str]] = []
        cancelled: set[str] = set()
        next_step = waiting[0][1].steps_later
        prompts: dict[str, tuple[list[int], Arrival]] = {}
        while waiting or self.is_busy:
            assert self.steps < MAX_STEPS, f"not done: {self.scheduler.get_request_counts()}"
            while waiting and (self.steps >= next_step or not self.is_busy):
                index, arrival = waiting.pop(0)
                request_id = f"{'offline' if arrival.priority >= OFFLINE_PRIORITY else 'online'}-{index}"
                prompts[request_id] = arrival.prompt(index), arrival
                self.add(
                    request_id,
                    prompts[request_id][0],
                    arrival.max_tokens,
                    priority=arrival.priority,
                    stop_token_ids=STOP_TOKENS if arrival.stops else (),
                )
                if arrival.cancelled_after is not None:
                    cancellations.append((self.steps + arrival.cancelled_after, request_id))
                next_step = self.steps + (waiting[0][1].steps_later if waiting else 0)
            for step, request_id in cancellations:
                if step <= self.steps and request_id not in cancelled:
                    self.cancel(request_id)
                    cancelled.add(request_id)
            self.step()
        for request_id, (prompt, arrival) in prompts.items():
            expected = sample_tokens(prompt, arrival.max_tokens, STOP_TOKENS if arrival.stops else ())
            if request_id in self.finished:
                assert self.answers[request_id] == expected
            else:
                assert request_id in cancelled
                assert self.answers[request_id] == expected[: len(self.answers[request_id])]
        scheduler = self.scheduler
        assert not scheduler.requests
        assert scheduler.get_request_counts() == (0, 0)
        assert not scheduler._inflight_prefills
        assert not scheduler.deferred_waiting
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
        if scheduler._kv.checkpoints is not None:
            checkpoints = scheduler._kv.checkpoints
            assert checkpoints._pool.free_slots == self.scenario.host_slots
            assert (checkpoints._landings.blocks, len(checkpoints._in_flight), checkpoints._unproved) == ([], 0, {})
            # By KV block, however many requests have come and gone.
            assert max(len(checkpoints._saved_by), len(checkpoints._loaded_by)) <= self.scenario.size.kv_blocks


def is_stale(request: Request) -> bool:
    """Whether outputs of a preempted request are still on their way; vLLM resumes it only after them."""
    return bool(request.num_stale_output_tokens and not request.drop_stale_output)


def play(scenario: Scenario) -> Watched:
    page = EnginePage.create()
    try:
        page.write_knobs(scenario.knobs)
        engine = Watched(scenario, page)
        with (
            engine.clock.installed(),
            mock.patch.object(scheduler_module, "share_out", engine.watch_share),
            mock.patch.object(scheduler_module, "measure_demand", engine.watch_demand),
        ):
            engine.play()
    finally:
        page.remove()
    return engine


# A scenario that fails is printed as it is: add Phase.shrink to get the smallest one, which takes minutes.
PROFILE = settings(
    max_examples=240,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@PROFILE
@given(scenario=scenarios())
def test_properties_hold_in_every_step(scenario: Scenario) -> None:
    play(scenario)


@PROFILE
@given(scenario=scenarios(stops=True))
def test_properties_hold_with_passes_that_are_stopped_and_continued(scenario: Scenario) -> None:
    play(scenario)


def test_properties_hold_with_blocks_that_are_copied_to_host_memory_and_back() -> None:
    counted: Counter[str] = Counter()

    @PROFILE
    @given(scenario=scenarios(stops=True, checkpoints=True))
    def check(scenario: Scenario) -> None:
        counters = play(scenario).scheduler._counters
        for name in ("saved_blocks", "restored_blocks", "failed_copies", "dropped_blocks"):
            counted[name] += int(getattr(counters, name))

    check()
    assert min(counted[name] for name in ("saved_blocks", "restored_blocks", "failed_copies", "dropped_blocks")) > 0


@settings(PROFILE, max_examples=80)
@given(scenario=scenarios(connector=True))
def test_all_requests_finish_beside_a_connector_that_loads_kv(scenario: Scenario) -> None:
    play(scenario)
