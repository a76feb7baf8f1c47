"""The scheduler of ConServe: vLLM's, with online requests first and offline ones in what is left.

Each step prepares vLLM's scheduler and calls it once: it decides which requests may run and how many tokens there are,
vLLM's own code allocates blocks and builds the batch. How much is left for offline work, who gives way and who comes
next are decisions of `conserve.policy`.

- Online requests that run or wait come first; if slots or KV blocks are short, offline requests are preempted for them
  at once. Beside those that decode, a long online prompt is computed in parts, as the TBT objective wants it.
- Offline tokens fill the iteration up to the time that the objectives allow: first offline decodes, then prompts that
  are being computed, then new ones. vLLM serves running requests before waiting ones, so while an online request waits
  only such offline prompts run whose whole rest fits.
- Iterations without online requests are full, or as long as an arrival can bear. Where they can be stopped between two
  layers that is long; a stopped one is continued as soon as there is no online request (`pass_control`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import structlog

from conserve.engine.arrival_wait import ArrivalWait
from conserve.engine.checkpoints import create_checkpoints
from conserve.engine.deadlines import Deadlines
from conserve.engine.iteration_log import IterationWriter
from conserve.engine.kv_tiers import KvTiers
from conserve.engine.lanes import LaneQueue, is_offline, split_lanes
from conserve.engine.live_settings import LiveSettings
from conserve.engine.making_way import preempt_beforehand, preempt_cheapest
from conserve.engine.offline_share import OfflineShare, Room, share_out
from conserve.engine.online_demand import (
    OnlineDemand,
    count_decodes,
    count_prompt_tokens,
    count_slots,
    is_decoding,
    measure_demand,
)
from conserve.engine.options import SchedulerOptions
from conserve.engine.page import Counters
from conserve.engine.pass_control import PassControl
from conserve.engine.pass_sizer import PassSizer
from conserve.engine.profile_store import ProfileSaver, load_profile, profile_key
from conserve.engine.punctuality import Punctuality
from conserve.engine.step_meter import StepMeter
from conserve.engine.step_plan import read_stop
from conserve.engine.stoppable import explain_unresumable, explain_unstoppable
from conserve.engine.vllm_compat import (
    AsyncScheduler,
    ModelRunnerOutput,
    Request,
    Scheduler,
    SchedulerOutput,
    VllmConfig,
    can_free_blocks,
    check_version,
    is_running,
    limit_chunks,
    look_up_admission,
    preempt,
    set_blocks_kept_free,
)
from conserve.engine.work_tally import WorkTally
from conserve.policy.latency import IterationShape, LatencyModel
from conserve.policy.pass_stop import SMALLEST_SLICE_OVERHEADS, Slack
from conserve.policy.token_budget import ArrivalGuard

_log = structlog.get_logger(__name__)
_arrival_time = attrgetter("arrival_time")


class CoServing(Scheduler):
    """What ConServe adds to a scheduler of vLLM. Use `create_scheduler`."""

    # Attributes of vLLM's scheduler that are set here.
    running: list[Request]
    max_num_running_reqs: int
    max_num_active_reqs: int
    max_num_scheduled_tokens: int

    def __init__(
        self, *args: Any, options: SchedulerOptions, control_class: type[PassControl] = PassControl, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._counters = Counters()
        self._tally = WorkTally(self.requests, self._counters)
        self._punctuality = Punctuality(self.requests, self._counters)
        self.waiting = LaneQueue(self._tally.lost_tokens)
        self.kv_holding_waiting = LaneQueue()
        self._log = IterationWriter(options.iteration_log) if options.iteration_log else None
        self._settings = LiveSettings(options.page, options.objectives, self.max_num_scheduled_tokens)
        key = profile_key(self.vllm_config)
        self._saver = ProfileSaver(options.profile_dir, key)
        self._model = LatencyModel(load_profile(options.profile_dir, key) if options.profile_dir else None)
        self._meter = StepMeter(self._model)
        self._guard = ArrivalGuard()
        self._watermark_blocks = self.kv_cache_manager.watermark_blocks
        self._control = self._make_control(options, control_class)
        checkpoints = create_checkpoints(self, options, self._counters, can_stop=self._control is not None)
        self._kv = KvTiers(self, checkpoints, self._counters)
        self._layers = self.vllm_config.model_config.get_num_layers(self.vllm_config.parallel_config)
        self._sizer = PassSizer(self._settings, self._meter, self._control, self._layers)
        self._wait = ArrivalWait(self._layers)
        self._preempt_rule = options.preempt
        self._resuming: list[tuple[Request, int]] = []
        self._until_s = math.inf
        self._may_slice = True
        self._preempted_in_step = False
        self._lacks_blocks = False
        self._next_arrival: Request | None = None
        # Workers take host memory only where there are checkpoints.
        self._settings.report(self._counters, self._model, 0)

    def _make_control(self, options: SchedulerOptions, control_class: type[PassControl]) -> PassControl | None:
        if options.preempt == "never":
            return None
        if (reason := explain_unstoppable(self.vllm_config)) is not None:
            _log.warning("offline passes are not stopped for online requests", reason=reason)
            return None
        unresumable = explain_unresumable(self.vllm_config)
        if unresumable is not None:
            _log.warning("what was computed of a stopped pass is computed again", reason=unresumable)
        return control_class(self, options, unresumable is None, self._counters)

    # What vLLM calls.

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Schedules one iteration."""
        now_s = time.monotonic()
        if self._settings.read():
            self._follow_settings()
        slots, active, tokens = self.max_num_running_reqs, self.max_num_active_reqs, self.max_num_scheduled_tokens
        longest_chunk = self.scheduler_config.long_prefill_token_threshold
        limit_ms, held = self._prepare(now_s)
        self.max_num_running_reqs -= len(held)
        # What continues a stopped pass has its blocks.
        preempted = not self._resuming and preempt_beforehand(self, now_s, self._kv.release_landed)
        self.max_num_active_reqs = 0 if preempted else self.max_num_active_reqs - len(held)
        try:
            output = super().schedule(throttle_prefills)
        finally:
            self.running += held
            self.max_num_running_reqs, self.max_num_active_reqs = slots, active
            self.max_num_scheduled_tokens = tokens
            limit_chunks(self, longest_chunk)
            self.waiting.offer = self.kv_holding_waiting.offer = 0
            set_blocks_kept_free(self, self._watermark_blocks)
        self._counters.held_requests += len(held)
        may_lack_blocks = self._kv.begin_batch(output, now_s)
        if output.total_num_scheduled_tokens > 0:
            self._begin(output, now_s, limit_ms, may_lack_blocks)
        # A slice that vLLM found no room for would keep those waiting who come after it.
        self._may_slice = output.total_num_scheduled_tokens > 0 or math.isinf(self._until_s)
        self._counters.schedule_s += time.monotonic() - now_s
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, Any]:
        """Takes in what an iteration has computed."""
        note = self._kv.end_batch(scheduler_output, model_runner_output, read_stop(model_runner_output))
        if self._control is not None and scheduler_output.total_num_scheduled_tokens > 0:
            work = self._control.take_in(note, time.monotonic())
            if note is not None:
                self._tally.uncount(work)
        expected = self._punctuality.expect(scheduler_output.num_scheduled_tokens)
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)
        now_s = time.monotonic()
        self._punctuality.count(expected, self._settings.objectives, now_s, time.time())
        self._kv.release_gone(self.finished_req_ids)
        if scheduler_output.total_num_scheduled_tokens > 0:
            iteration = self._meter.end(now_s, note)
            if self._control is not None and note is not None and not note.is_void:
                self._control.add_time(self._meter.spent_ms)
            self._counters.over_budget_iterations += not iteration.in_time
            self._counters.arrival_wait_ms = self._wait.observe(iteration, self._find_let_go_ms())
            if self._log is not None:
                self._log.write(iteration)
        self._counters.counted_until_s = now_s
        self._kv.report(self.running)
        self._settings.report(self._counters, self._model, len(self.waiting.backlog))
        return outputs

    def add_request(self, request: Request) -> None:
        """Takes a new request in."""
        if not is_offline(request) and request.request_id not in self.requests:
            now_s = time.monotonic()
            before = (other for other in self.running if not is_offline(other))
            tokens = count_prompt_tokens(before, (self.kv_holding_waiting.online, self.waiting.online))
            self._guard.observe(now_s, tokens + request.num_prompt_tokens, request.priority)
            self._kv.observe_arrival(request, now_s)
            if self._control is not None:
                self._control.settle(request)
        super().add_request(request)

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """Ends requests, as those whose client has gone."""
        ended = super().finish_requests(request_ids, finished_status)
        self._kv.release_gone(self.finished_req_ids)
        return ended

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forgets what is in the prefix cache and in host memory; False if requests use it."""
        # What is held for requests that wait is in no one's use.
        self._kv.release_landed()
        done = bool(super().reset_prefix_cache(reset_running_requests, reset_connector))
        if done:
            self._kv.forget()
        return done

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        self._tally.preempt(request)
        self._kv.note_preempted(request, time.monotonic(), for_blocks=self._lacks_blocks)
        self._preempted_in_step = True
        super()._preempt_request(request, timestamp, drop_stale_output)
        self._kv.note_freed()

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        return self._kv.extend_hit(request, super()._get_local_prefix_cache_hit(request))

    def shutdown(self) -> None:
        """Ends the log of iterations, too."""
        if self._log is not None:
            self._log.close()
        super().shutdown()

    def _follow_settings(self) -> None:
        knobs = self._settings.knobs
        self._saver.follow(knobs.save_profile, self._model)
        self.waiting.backlog.ordered = not knobs.prefix_order_off
        if self._control is not None:
            self._control.may_resume = not knobs.resume_off
        self._kv.set_enabled(not knobs.checkpoints_off)

    # One step.

    def _prepare(self, now_s: float) -> tuple[float, list[Request]]:
        """Sets vLLM's scheduler up for a step. Returns the longest the iteration may take, and who is held back."""
        self._preempted_in_step = False
        self._resuming = []
        was_slice = math.isfinite(self._until_s)
        self._until_s = math.inf
        if self._control is not None:
            self._control.drop_aged(now_s)
        online, offline = split_lanes(self.running)
        self.max_num_scheduled_tokens = self._settings.full_batch
        has_offline = bool(offline or self.waiting.backlog or self.kv_holding_waiting.backlog)
        if not has_offline and self._has_decodes_only(online):
            return float("inf"), []
        deadlines = Deadlines(self._model, self._meter, self._guard, self._settings.objectives, now_s, time.time())
        demand = self._measure(online, deadlines)
        if not has_offline:
            self.running = demand.running
            self.max_num_scheduled_tokens = demand.tokens if demand.is_cut else self._settings.full_batch
            return float("inf"), []
        offline.sort(key=_arrival_time)
        if self._control is not None and not demand.is_present:
            if self._is_awaited(now_s):
                self.running = []
                return math.inf, offline
            self._resuming = self._control.find_resumable()
            if self._resuming:
                return math.inf, self._resume(offline)
        kept_free = self._kv.find_kept_free(offline, now_s)
        if demand.blocks > self._kv.count_free() and self._kv.release_landed():
            # Arrivals may have counted on blocks that were held for others.
            demand = self._measure(demand.running, deadlines)
        demand = self._make_way(demand, offline, now_s, deadlines)
        offline = [request for request in offline if is_running(request)]
        slack = self._find_slack(demand, offline, deadlines, now_s)
        # Prompts that are computed in slices are not computed beside those who decode, unless there is no time for a
        # slice now, nor was just before.
        decodes_only = slack is not None and slack.is_regular and (slack.is_enough or was_slice)
        if slack is not None and slack.is_enough and self._may_slice:
            room = Room(self._kv.count_free() - demand.blocks, kept_free)
            if (held := self._slice(demand, offline, deadlines, room, now_s)) is not None:
                self._until_s = slack.until_s
                return math.inf, held
            decodes_only = False
        limit_ms = self._sizer.limit_ms(demand, deadlines)
        full_batch = self._sizer.size_mixed(demand) if demand.is_present else self._sizer.size_pass(deadlines)

        def share_out_rest() -> OfflineShare:
            room = Room(self._kv.count_free() - demand.blocks, kept_free)
            return self._share(offline, demand, limit_ms, room, full_batch, decodes_only)

        share = share_out_rest()
        if share.blocks_short and self._give_way(share, now_s):
            offline = [request for request in offline if is_running(request)]
            share = share_out_rest()
        self._prefetch(share, demand, now_s, is_alone=not (demand.is_present or share.admitted))
        self.running = [*demand.running, *share.admitted]
        self.max_num_scheduled_tokens = min(demand.tokens + share.tokens, self._settings.full_batch)
        if share.longest_chunk_tokens:
            limit_chunks(self, share.longest_chunk_tokens)
        self.waiting.offer = 0 if self._preempted_in_step else share.offer
        self.kv_holding_waiting.offer = share.holding_offer
        set_blocks_kept_free(self, share.blocks_kept_free)
        return limit_ms * self._model.safety_factor(), share.held

    def _share(
        self,
        offline: list[Request],
        demand: OnlineDemand,
        limit_ms: float,
        room: Room,
        full_batch: int,
        decodes_only: bool,
    ) -> OfflineShare:
        # What is to continue a stopped pass must not move on in the meantime.
        held = [request for request in offline if self._control.holds(request)] if self._control is not None else []
        going = [request for request in offline if request not in held] if held else offline
        return share_out(self, going, demand, self._model, limit_ms, full_batch, room, held, decodes_only)

    def _make_way(
        self, demand: OnlineDemand, offline: list[Request], now_s: float, deadlines: Deadlines
    ) -> OnlineDemand:
        """Preempts offline requests until the online ones have their slots and KV blocks; returns the demand then."""
        while offline:
            slots_short = demand.slots + len(offline) - count_slots(self) if demand.arrivals else 0
            blocks_short = demand.blocks - self._kv.count_free()
            if not self._preempt(offline, slots_short, blocks_short, now_s):
                break
            # Arrivals may have counted on blocks of a victim, and what two victims share is free after both only.
            offline = [request for request in offline if is_running(request)]
            demand = self._measure(demand.running, deadlines)
        next_arrival = demand.arrivals[0] if demand.arrivals else None
        if self.connector is not None and next_arrival is not None and next_arrival is self._next_arrival:
            # vLLM passed it over: against what a connector loads, it reserves blocks for half-computed prompts.
            for request in offline:
                if not is_decoding(request) and can_free_blocks(self, request):
                    preempt(self, request, now_s)
            demand = self._measure(demand.running, deadlines)
            demand.is_passed_over = True
        self._next_arrival = next_arrival
        return demand

    def _has_decodes_only(self, online: list[Request]) -> bool:
        is_waiting = self.waiting.online or self.kv_holding_waiting.online
        return not is_waiting and not any(request.is_prefill_chunk for request in online)

    def _measure(self, online: list[Request], deadlines: Deadlines) -> OnlineDemand:
        waiting = (self.kv_holding_waiting.online, self.waiting.online)
        return measure_demand(self, online, waiting, self._settings.full_batch, deadlines)

    def _give_way(self, share: OfflineShare, now_s: float) -> bool:
        """Preempts offline requests for others of them that cannot go on; True if one was preempted."""
        if self._kv.release_landed():
            return True
        first, *others = share.wanting
        # The oldest goes on, so there is always one that gets to its end: unless requests that wait have the blocks.
        candidates = others if others or not self.kv_holding_waiting.backlog else [first]
        return self._preempt(candidates, 0, share.blocks_short, now_s)

    def _preempt(self, candidates: Iterable[Request], slots_short: int, blocks_short: int, now_s: float) -> bool:
        """Preempts those of the candidates that lose least, as many as it takes; False if it is none."""
        self._lacks_blocks = blocks_short > 0
        try:
            return preempt_cheapest(
                self, candidates, slots_short, blocks_short, now_s, self._count_kept_tokens, self._kv.count_saved_blocks
            )
        finally:
            self._lacks_blocks = False

    def _count_kept_tokens(self, request: Request) -> int:
        return self._control.count_kept_tokens(request) if self._control is not None else 0

    # Passes that can be stopped.

    def _is_awaited(self, now_s: float) -> bool:
        return self._control is not None and self._sizer.can_stop and self._control.is_awaited(now_s)

    def _find_let_go_ms(self) -> float:
        """A pass of offline work with no more than so much left comes to its end, although a request waits."""
        if not self._sizer.can_stop:
            return math.inf
        if self._preempt_rule == "always":
            return 0.0
        ttft_slo_ms = min(objective.ttft_slo_ms for objective in self._settings.objectives)
        return ttft_slo_ms - self._guard.first_token_ms(self._model)

    def _resume(self, offline: list[Request]) -> list[Request]:
        """Sets vLLM's scheduler up to continue the stopped pass. Returns who is held back."""
        self.running = [request for request, _ in self._resuming]
        self.max_num_scheduled_tokens = sum(tokens for _, tokens in self._resuming)
        return [request for request in offline if request not in self.running]

    def _find_slack(
        self, demand: OnlineDemand, offline: list[Request], deadlines: Deadlines, now_s: float
    ) -> Slack | None:
        if self._control is None or not self._sizer.can_stop or not self._control.can_resume or not demand.is_present:
            return None
        if self._sizer.is_paused:
            return None
        decodes = count_decodes(self, [request for request in offline if is_decoding(request)])
        slack = deadlines.find_slack(demand, IterationShape().add_decodes(decodes.sequences, decodes.context))
        return slack._replace(is_enough=False) if slack is not None and self._is_awaited(now_s) else slack

    def _slice(
        self, demand: OnlineDemand, offline: list[Request], deadlines: Deadlines, room: Room, now_s: float
    ) -> list[Request] | None:
        """Sets vLLM's scheduler up for a pass of offline prompts between two iterations of those who decode.

        Returns:
            Who is held back; None if there is not enough to compute.
        """
        if self._control is None:
            return None
        self._resuming = self._control.find_resumable()
        if self._resuming:
            return [*self._resume(offline), *demand.running]
        prompts = [request for request in offline if not is_decoding(request)]
        decodes = [request for request in offline if is_decoding(request)]
        limit_ms = deadlines.limit_pass_ms(self._layers)
        alone = OnlineDemand([])
        tokens = self._sizer.size_pass(deadlines)
        share = share_out(self, prompts, alone, self._model, limit_ms, tokens, room, [*demand.running, *decodes])
        shape = IterationShape().add_prefill(max(1, share.tokens), 0)
        if self._model.predict_ms(shape) < SMALLEST_SLICE_OVERHEADS * self._model.overhead_ms():
            return None  # So little rides with those who decode.
        self._prefetch(share, demand, now_s, is_alone=False)
        if not share.admitted:
            free_blocks = self._kv.count_free() - demand.blocks
            fits = share.offer and (
                look_up_admission(self, self.waiting.backlog.peek_next()).blocks + share.blocks_kept_free <= free_blocks
            )
            if not fits:
                return None
        self.running = share.admitted
        self.max_num_scheduled_tokens = min(share.tokens, self._settings.full_batch)
        self.waiting.offer = 0 if self._preempted_in_step else share.offer
        set_blocks_kept_free(self, share.blocks_kept_free)
        return share.held

    def _prefetch(self, share: OfflineShare, demand: OnlineDemand, now_s: float, *, is_alone: bool) -> None:
        if not self._preempted_in_step:
            self._kv.prefetch(share, demand, now_s, is_alone=is_alone)

    # An iteration.

    def _begin(self, output: SchedulerOutput, now_s: float, limit_ms: float, may_lack_blocks: bool) -> None:
        """An iteration was scheduled."""
        work = self._tally.count(output)
        self._sizer.charge(self._model, work.shape)
        limit_ms = limit_ms if work.is_mixed and math.isfinite(limit_ms) else 0.0
        if self._control is None:
            self._meter.begin(work, now_s, limit_ms)
            return
        first_layer, spent_ms = self._control.continue_stopped(output, self._resuming)
        layers_share = 1.0 - first_layer / self._layers
        ends_s = self._meter.begin(work, now_s, limit_ms, first_layer, layers_share, spent_ms, self._until_s)
        self._control.plan(
            output,
            work,
            predicted_end_s=ends_s,
            first_token_ms=self._guard.first_token_ms(self._model),
            may_stop=self._sizer.can_stop,
            until_s=self._until_s,
            may_lack_blocks=may_lack_blocks,
        )


class CoServeScheduler(CoServing):
    """With synchronous scheduling."""


class AsyncCoServeScheduler(CoServing, AsyncScheduler):
    """With asynchronous scheduling: the next iteration is scheduled while one runs."""


def create_scheduler(
    vllm_config: VllmConfig,
    options: SchedulerOptions | None = None,
    control_class: type[PassControl] = PassControl,
    **kwargs: Any,
) -> CoServing:
    """What vLLM calls as its `scheduler_cls`. Takes the same arguments as vLLM's `Scheduler`.

    Args:
        vllm_config: Of the engine.
        options: By default those in its `additional_config`.
        control_class: Stops passes and has them continued.
        kwargs: As for vLLM's `Scheduler`.

    Raises:
        RuntimeError: this vLLM is not one that the scheduler was tested with.
        ValueError: a setting that the scheduler cannot work with.
    """
    check_version()
    model = vllm_config.model_config
    kinds = {
        "diffusion": model.is_diffusion,
        "encoder-decoder": model.is_encoder_decoder,
        "pooling": model.runner_type == "pooling",
    }
    for kind, found in kinds.items():
        if found:
            raise ValueError(f"ConServe's scheduler does not serve {kind} models: set `engine.mode: stock`")
    if vllm_config.speculative_config is not None:
        raise ValueError("speculative_config: not with ConServe's scheduler (or set engine.mode: stock)")
    if not vllm_config.scheduler_config.enable_chunked_prefill:
        raise ValueError(
            "enable_chunked_prefill: must be true, offline prompts are computed in parts (or set engine.mode: stock)"
        )
    options = options or SchedulerOptions.from_additional_config(vllm_config.additional_config)
    is_async = vllm_config.scheduler_config.async_scheduling
    scheduler: type[CoServing] = AsyncCoServeScheduler if is_async else CoServeScheduler
    return scheduler(vllm_config=vllm_config, options=options, control_class=control_class, **kwargs)
