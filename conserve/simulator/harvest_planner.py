"""ConServe's scheduling in the simulator: what the engine's scheduler does, with the same policies.

What the engine's own modules decide besides those (`offline_share`, `online_demand`, `pass_control`) is followed here
in the same order, without vLLM's queues between.
"""

from __future__ import annotations

import math

from conserve.policy.kv_reserve import KvReserve
from conserve.policy.latency import IterationShape
from conserve.policy.pass_rates import PassRates
from conserve.policy.pass_stop import (
    LAYERS_TO_STOP,
    MOST_STOPS_IN_A_ROW,
    SMALLEST_SLICE_OVERHEADS,
    PassProgress,
    Slack,
    can_bear_mixed,
    find_slack,
    must_stop,
)
from conserve.policy.token_budget import ArrivalGuard
from conserve.simulator.engine_state import EngineState
from conserve.simulator.harvest_limits import HarvestLimits, Mechanisms
from conserve.simulator.host_copies import HostCopies
from conserve.simulator.making_way import MakingWay
from conserve.simulator.offline_filling import Filling, Room, fill
from conserve.simulator.online_demand import OnlineDemand, measure_demand
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Step
from conserve.simulator.stopped_pass import StoppedPasses


class HarvestPlanner:
    """Plans iterations as ConServe's scheduler does.

    Args:
        state: Of the engine.
        mechanisms: Objectives, and what is switched on.
    """

    def __init__(self, state: EngineState, mechanisms: Mechanisms) -> None:
        self._state = state
        self._does = mechanisms
        self._guard = ArrivalGuard()
        self._reserve = KvReserve(state.costs.kv_blocks)
        self._limits = HarvestLimits(state, mechanisms, self._guard)
        self._copies = HostCopies(state) if mechanisms.checkpoints and state.costs.host_kv_gib > 0 else None
        self._stopped = StoppedPasses(state)
        self._way = MakingWay(state, self._copies, self._stopped)
        self._rates = PassRates()
        self._was_slice = False
        state.backlog.ordered = mechanisms.prefix_order

    # What the replica calls.

    @property
    def kept_free_blocks(self) -> int:
        """KV blocks that new offline requests leave free."""
        return self._way.kept_by_new + self._state.running

    @property
    def efficient_ms(self) -> float:
        """No iteration with online requests has to be longer."""
        return self._limits.efficient_ms

    def note_arrival(self, request: SimRequest, now_s: float) -> None:
        """An online request has come; it waits already."""
        state = self._state
        before = state.flow_left
        if before is None:
            before = 0
            for other in state.online_prompts:
                before += other.to_compute
        for other in state.waiting:
            before += other.prompt_tokens
        self._guard.observe(now_s, before, 0)
        self._limits.note_arrival()
        self._reserve.observe(now_s, state.kv.blocks_for(request.prompt_tokens) + 1)

    def find_stop_share(self, step: Step, now_s: float, iteration: int) -> float | None:
        """Which share of a running iteration's layers is computed when it stops for an arrival; None: it does not."""
        layers = self._state.costs.layers
        began_s = step.begins_s + step.duration_ms(iteration) / 1e3
        whole_ms = step.duration_ms(iteration + 1) - step.duration_ms(iteration)
        layer_s = whole_ms / 1e3 / layers
        first = round(step.done_share * layers)
        last = round(step.end_share * layers)
        layer = first + max(1, math.ceil((now_s - began_s) / layer_s - 1e-9))
        # Before enough layers its end is known by the prediction only.
        for at in (layer, max(layer, first + LAYERS_TO_STOP)):
            if at + self._state.costs.stop_lag_layers >= last:
                return None
            progress = PassProgress(
                began_s=began_s,
                now_s=began_s + (at - first) * layer_s,
                first_layer=first,
                layer=at,
                layers=layers,
                predicted_end_s=began_s + step.predicted_ms * (layers - first) / layers * self._state.safety / 1e3,
            )
            due_s = now_s + self._does.ttft_slo_ms / 1e3
            if must_stop(self._does.preempt, progress, due_s, self._limits.first_token_ms()):
                return (at + self._state.costs.stop_lag_layers) / layers
        return None

    def let_go_ms(self) -> float:
        """A pass with no more than so much left comes to its end, although it can be stopped."""
        if self._does.preempt != "slo":
            return 0.0
        return self._does.ttft_slo_ms - self._limits.first_token_ms()

    def count_ahead_tokens(self) -> int:
        """Online requests go first in each iteration."""
        return 0

    def count_free_slots(self) -> int:
        """Slots for online requests that would come now: offline ones make way."""
        state = self._state
        return state.limits.max_num_seqs - state.online.size - len(state.online_prompts) - len(state.waiting)

    def note_stopped(self, step: Step, now_s: float, share: float) -> None:
        """An iteration was stopped with this share of its layers computed."""
        self._state.metrics.stops += 1
        self._stopped.keep(step, now_s, share, can_resume=self._does.resume)

    def note_done(self, step: Step, now_s: float) -> None:
        """A step has come to its end."""
        if not step.has_online:
            self._stopped.note_done()
        if not self._state.coarse:
            self._learn(step)
        if self._copies is not None and self._state.finished:
            for request in self._state.finished:
                self._copies.forget(request)

    def _learn(self, step: Step) -> None:
        """As the engine's `StepMeter`; many iterations that are one step teach as much as one."""
        self._state.learn(step.shape, step.first_ms + (step.lead_ms if step.done_share else 0.0))
        self._limits.note_learnt()
        if step.done_share == 0.0:
            self._rates.observe(step.shape, step.first_ms)

    def wake_s(self, now_s: float) -> float:
        """When a request has come back from host memory."""
        return self._copies.landed_s if self._copies is not None else math.inf

    def plan(self, now_s: float) -> Step | None:
        """The next iterations; None if there is nothing to compute now."""
        state = self._state
        self._stopped.drop_aged(now_s)
        was_slice, self._was_slice = self._was_slice, False
        if not state.has_offline and self.wake_s(now_s) == math.inf:
            return self._plan_online(now_s)
        demand = measure_demand(state, self._limits, now_s)
        if not demand.is_present and (step := self._stopped.resume(now_s)) is not None:
            return step
        self._way.keep_free(self._reserve.blocks(now_s))
        demand = self._way.make_way(demand, self._limits, now_s)
        slack = self._find_slack(demand, now_s)
        decodes_only = slack is not None and slack.is_regular and (slack.is_enough or was_slice)
        if slack is not None and slack.is_enough:
            if (step := self._slice(demand, slack, now_s)) is not None:
                self._was_slice = True
                return step
            decodes_only = False
        limit_ms = self._limits.limit_ms(demand, now_s)
        largest = self._size_mixed(demand, now_s) if demand.is_present else self._size_pass(now_s)
        filling = self._fill(demand, limit_ms, largest, now_s, decodes_only=decodes_only)
        if filling.blocks_short and self._way.give_way(filling, now_s):
            filling = self._fill(demand, limit_ms, largest, now_s, decodes_only=decodes_only)
        step = self._make_step(demand, filling, now_s)
        if step is not None and filling.tokens and demand.decodes and now_s > state.last_tokens_s + 1e-9:
            # The limit of the next one counts from the tokens of this one.
            step.count = step.count if math.isinf(limit_ms) else 1
        self._save(now_s)
        return step

    # Parts of a plan.

    def _plan_online(self, now_s: float) -> Step | None:
        if not self._state.has_online:
            return None
        demand = self._way.make_way(measure_demand(self._state, self._limits, now_s), self._limits, now_s)
        return self._make_step(demand, Filling(demand.shape), now_s)

    def _fill(
        self, demand: OnlineDemand, limit_ms: float, largest: int, now_s: float, *, decodes_only: bool
    ) -> Filling:
        state = self._state
        room = Room(state.kv.free_blocks - demand.blocks, self._way.kept_by_new, self._way.kept_by_running)
        held = self._stopped.list_held()
        return fill(state, demand, limit_ms, largest, room, held, self._copies, now_s, decodes_only=decodes_only)

    def _make_step(self, demand: OnlineDemand, filling: Filling, now_s: float) -> Step | None:
        state = self._state
        shape = filling.shape
        if not shape.tokens:
            return None
        has_online = demand.is_present
        step = Step(
            shape,
            state.time_ms(shape),
            online_decodes=demand.decodes > 0,
            chunks=[*demand.chunks, *filling.chunks],
            offline_decodes=filling.decodes,
            held=filling.held_decodes,
            predicted_ms=state.model.predict_ms(shape),
            has_online=has_online,
            is_stoppable=not has_online and self._can_stop,
        )
        if step.is_stoppable:
            step.first_ms *= 1.0 + state.costs.safepoint_share
        step.slope_ms = state.find_slope_ms(step)
        spare_tokens = max(0, state.kv.free_tokens - self._way.kept_by_running * state.kv.block_size)
        # Prompts of a stopped pass must stay as they are.
        kept_tokens = self.kept_free_blocks * state.kv.block_size
        # After prompts others are computed beside those who decode, unless there are slices for them.
        flows = state.coarse and has_online and self._bears_mixed(now_s)
        after_ms = self._limits.limit_after_ms(now_s) if flows else None
        state.bound_count(step, spare_tokens, kept_tokens=kept_tokens, closely=self._stopped.is_kept, after_ms=after_ms)
        if step.count > 1 and self._copies is not None and self._copies.landed_s < math.inf:
            # Who has come back by then goes on.
            left_ms = (self._copies.landed_s - now_s) * 1e3
            step.count = max(1, min(step.count, math.ceil(left_ms / step.first_ms)))
        return step

    @property
    def _can_stop(self) -> bool:
        return self._does.safepoints and self._stopped.in_a_row < MOST_STOPS_IN_A_ROW

    def _size_pass(self, now_s: float) -> int:
        full = self._state.limits.max_num_batched_tokens
        tokens = min(full, self._does.offline_pass_tokens or full)
        if self._does.offline_pass_tokens or self._does.full_passes:
            return tokens
        tokens = self._rates.best_tokens(tokens)
        if not self._can_stop or self._does.resume:
            return tokens
        return min(tokens, self._limits.choose_pass_tokens(now_s, tokens))

    def _is_paused(self, now_s: float) -> bool:
        gate = self._state.gate
        return gate is not None and gate.is_overloaded(now_s)

    def _size_mixed(self, demand: OnlineDemand, now_s: float) -> int:
        full = self._state.limits.max_num_batched_tokens
        if self._is_paused(now_s):
            return demand.tokens
        return max(demand.tokens, self._rates.best_tokens(full)) if self._does.token_budget else full

    def _bears_mixed(self, now_s: float) -> bool:
        """Whether prompts go into the iterations of those who decode, and not into slices of passes of their own."""
        if not (self._can_stop and self._does.resume):
            return True
        spare_ms = self._limits.spare_ms(now_s)
        return can_bear_mixed(spare_ms, self._does.tbt_slo_ms, self._state.overhead_ms)

    def _find_slack(self, demand: OnlineDemand, now_s: float) -> Slack | None:
        state = self._state
        if not demand.decodes or demand.arrivals or demand.prompts or self._is_paused(now_s):
            return None
        if self._bears_mixed(now_s):
            return None
        shape = demand.shape.add_decodes(state.offline.size, state.offline.context)
        return find_slack(
            now_s,
            max(state.last_tokens_s, now_s - 10.0) + self._does.tbt_slo_ms / 1e3,
            self._does.tbt_slo_ms,
            state.model.predict_ms(shape) * state.safety,
            state.overhead_ms,
        )

    def _slice(self, demand: OnlineDemand, slack: Slack, now_s: float) -> Step | None:
        """A pass of offline prompts between two iterations of those who decode; None if there is too little."""
        state = self._state
        if (step := self._stopped.resume(now_s, slack.until_s)) is not None:
            return step
        if self._stopped.is_kept:
            return None
        alone = OnlineDemand()
        room = Room(state.kv.free_blocks - demand.blocks, self._way.kept_by_new, self._way.kept_by_running)
        limit_ms = self._limits.limit_pass_ms(now_s)
        tokens = self._size_pass(now_s)
        filling = fill(state, alone, limit_ms, tokens, room, (), self._copies, now_s, prompts_only=True)
        if not filling.chunks:
            return None
        shape = IterationShape().add_prefill(max(1, filling.tokens), 0)
        if state.model.predict_ms(shape) < SMALLEST_SLICE_OVERHEADS * state.overhead_ms:
            return None
        step = self._make_step(alone, filling, now_s)
        if step is not None:
            step.count = 1
            step.is_stoppable = True
            self._stopped.cut(step, now_s, slack.until_s)
        return step

    def _save(self, now_s: float) -> None:
        if self._copies is None or not self._copies.is_due(now_s):
            return
        state = self._state
        burst_blocks, wanted_blocks = self._reserve.predict_burst(now_s), state.running
        if burst_blocks and len(state.backlog) and state.running < state.limits.max_num_seqs:
            wanted_blocks += state.kv.blocks_for(state.backlog.peek_next().total_tokens)
        self._copies.save(now_s, burst_blocks, wanted_blocks)
