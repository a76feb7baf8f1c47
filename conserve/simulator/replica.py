"""One replica in virtual time: its engine's steps, and what arrivals, failures and draining do to them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Protocol

from conserve.policy.outlook import Outlook, limit_prompt_tokens, predict_wait_ms
from conserve.policy.overload import Conditions
from conserve.policy.pass_stop import LAYERS_TO_STOP
from conserve.policy.replica_capacity import ReplicaCapacity, ReplicaState
from conserve.simulator.capacity_meter import CapacityMeter, measure_kv_room
from conserve.simulator.engine_costs import EngineCosts, Noise
from conserve.simulator.engine_state import EngineLimits, EngineState
from conserve.simulator.metrics import Metrics
from conserve.simulator.progress import Progress
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Part, Step


class Planner(Protocol):
    """Decides what the engine computes next."""

    @property
    def kept_free_blocks(self) -> int:
        """KV blocks that new offline requests leave free."""

    def note_arrival(self, request: SimRequest, now_s: float) -> None:
        """An online request has come."""

    def plan(self, now_s: float) -> Step | None:
        """The next iterations; None if there is nothing to compute now."""

    def count_ahead_tokens(self) -> int:
        """Offline prompt tokens that are computed before an online request that would come now."""

    def count_free_slots(self) -> int:
        """Slots for online requests that would come now."""


class StoppingPlanner(Planner, Protocol):
    """One whose passes can be stopped."""

    def find_stop_share(self, step: Step, now_s: float, iteration: int) -> float | None:
        """Which share of a running iteration's layers is computed when it stops for an arrival; None: it does not."""

    def note_stopped(self, step: Step, now_s: float, share: float) -> None:
        """An iteration was stopped with this share of its layers computed."""

    def note_done(self, step: Step, now_s: float) -> None:
        """A step has come to its end."""

    def let_go_ms(self) -> float:
        """An iteration with no more than so much left comes to its end, although it can be stopped."""

    def wake_s(self, now_s: float) -> float:
        """When to plan anew although nothing has happened; `inf` for never."""


class Replica:
    """A replica.

    Args:
        number: From 0.
        costs: What its iterations cost.
        limits: Sizes of its engine.
        metrics: Where to count.
        seed: Decides the noise of its iterations.
        coarse: As of `EngineState`.
    """

    def __init__(
        self,
        number: int,
        costs: EngineCosts,
        limits: EngineLimits,
        metrics: Metrics,
        seed: int,
        *,
        coarse: bool = False,
    ) -> None:
        self.number = number
        self.name = f"replica-{number}"
        self.status: ReplicaState = "serving"
        self.state = EngineState(costs, limits, metrics, coarse=coarse)
        self.planner: Planner
        self.stopping: StoppingPlanner | None = None
        self.meter: CapacityMeter | None = None
        self.tbt_slo_ms = math.inf
        self.version = 0
        """Goes up whenever the end of the step under way changes."""
        self.ends_s = math.inf
        self._metrics = metrics
        self._noise = Noise(costs, random.Random(seed * 1_000_003 + number))  # noqa: S311 - a simulation
        self._step: Step | None = None
        self._stop_share: float | None = None
        self._free_s = 0.0
        self._is_between = False
        self._progress = Progress(self.state, metrics)

    # What the cluster calls.

    def lets_in(self, request: SimRequest, now_s: float) -> bool:
        """Whether an online request that comes now is not refused."""
        state = self.state
        gate = state.gate
        if gate is None:
            return True
        verdict = gate.decide(0, request.prompt_tokens, 1, self._find_conditions(now_s), now_s)
        if verdict.reason is None:
            gate.enter(request.number, 0, request.prompt_tokens, 1, verdict, now_s)
            return True
        self._metrics.add_refused(now_s, verdict.reason)
        return False

    def arrive(self, request: SimRequest, now_s: float) -> None:
        """An online request comes in."""
        state, step = self.state, self._step
        if self.meter is not None:
            self.meter.note_arrival()
        state.waiting.append(request)
        self._progress.prompt_backlog += request.prompt_tokens
        if step is None or not step.parts:
            self.planner.note_arrival(request, now_s)
            self._interrupt(now_s, for_online=True)
            return
        iteration = step.find_iteration((now_s - step.begins_s) * 1e3)
        state.flow_left = step.count_online_left(iteration)
        self.planner.note_arrival(request, now_s)
        state.flow_left = None
        if not self._join(request, step, iteration + 1):
            self._interrupt(now_s, for_online=True, iteration=iteration)

    def feed(self, request: SimRequest, now_s: float) -> None:
        """An offline request comes in; a step that leaves it no room goes on."""
        self.state.add_offline(request)
        if self._is_between:
            return
        if self._step is None or (self._step.count > 1 and len(self.state.backlog) == 1):
            self._interrupt(now_s, for_online=False)

    def end_step(self, now_s: float, refill: Callable[[Replica, float], None] | None = None) -> None:
        """The step under way has come to its end, or it is time to look again.

        Args:
            now_s: Now.
            refill: Gives new offline requests for those that have ended. Where steps are coarse it does so before the
                next one is decided; otherwise that one is under way when they come, as it is in an engine.
        """
        step, self._step = self._step, None
        if step is not None:
            if self._stop_share is not None:
                self._finish_stopped(step, now_s)
            else:
                kept_free_blocks = self.planner.kept_free_blocks if step.parts else 0
                self._progress.apply(step, step.count, now_s, kept_free_blocks)
                if self.stopping is not None:
                    self.stopping.note_done(step, now_s)
        if refill is None or not self.state.finished:
            self._begin(now_s)
        elif self.state.coarse:
            self._is_between = True
            refill(self, now_s)
            self._is_between = False
            self._begin(now_s)
        else:
            self._begin(now_s)
            refill(self, now_s)

    def report(self, now_s: float = 0.0) -> ReplicaCapacity:
        """What the replica says about itself; of its headroom only if it has a meter."""
        state, meter = self.state, self.meter
        return ReplicaCapacity(
            self.name,
            "model",
            self.status,
            online_running=state.online.size,
            online_waiting=len(state.waiting) + len(state.online_prompts),
            kv_usage=state.kv.usage,
            offline_running=state.offline_running,
            headroom=meter.find_headroom(state, now_s) if meter is not None else None,
            kv_room=measure_kv_room(state, self.planner.kept_free_blocks) if meter is not None else None,
        )

    def report_outlook(self, now_s: float) -> Outlook:
        """What a request would find that would come now."""
        state, step = self.state, self._step
        before = self._progress.prompt_backlog
        if now_s >= state.flowed_s:
            before -= state.flowing_tokens
        iteration_ms = state.overhead_ms + state.decode_ms * state.online.size
        wait_ms = self.planner.count_ahead_tokens() * state.token_ms
        if step is not None and now_s < self.ends_s:
            layers = state.costs.layers
            stop_ms, let_go_ms = math.inf, 0.0
            if step.is_stoppable and self.stopping is not None:
                stop_ms = step.first_ms * LAYERS_TO_STOP / layers + state.costs.stop_ms
                let_go_ms = self.stopping.let_go_ms()
            wait_ms += predict_wait_ms(step.first_ms, stop_ms, let_go_ms)
        return Outlook(
            wait_ms,
            before,
            iteration_ms,
            state.token_ms,
            state.limits.max_num_batched_tokens,
            self.planner.count_free_slots(),
            state.kv.free_tokens,
        )

    def _find_conditions(self, now_s: float) -> Conditions:
        state, outlook = self.state, self.report_outlook(now_s)
        held = state.online.context + sum([request.computed for request in state.online_prompts])
        decodes = state.online.size
        decode_ms = state.decode_ms + (state.context_ms * state.online.context / decodes if decodes else 0.0)
        outlook = outlook._replace(iteration_ms=state.overhead_ms + decode_ms * decodes)
        if state.online.size and self.stopping is not None:
            tokens = limit_prompt_tokens(
                outlook.iteration_tokens, outlook.iteration_ms, state.overhead_ms, state.token_ms, self.tbt_slo_ms
            )
            outlook = outlook._replace(iteration_tokens=tokens)
        free_tokens = state.kv.capacity - held
        return Conditions(
            outlook._replace(free_kv_tokens=free_tokens), decode_ms, state.limits.max_num_seqs, state.kv.capacity
        )

    def take_longest_ttft_ms(self) -> float:
        """The longest time to a first token since this was asked last; 0 without any."""
        longest_ms, self._progress.longest_ttft_ms = self._progress.longest_ttft_ms, 0.0
        return longest_ms

    def fail(self) -> tuple[list[SimRequest], list[SimRequest]]:
        """The process is gone. Returns its online and its offline requests, as they were before they began."""
        state = self.state
        online = [*state.waiting, *state.online_prompts, *state.online]
        offline = [*state.backlog, *state.offline_prompts, *state.offline]
        self.state = EngineState(state.costs, state.limits, state.metrics, coarse=state.coarse)
        self._progress = Progress(self.state, state.metrics)
        self._step = self._stop_share = None
        self.version += 1
        self.ends_s = math.inf
        self.status = "starting"
        return online, offline

    # Steps.

    def _join(self, request: SimRequest, step: Step, begin: int) -> bool:
        """Lets an online request take the place of offline prompts from an iteration on, if nothing else changes."""
        state = self.state
        last = step.joinable_count if step.joinable_count < step.count else step.count
        if begin >= last or request.prefix or len(state.waiting) > 1 or step.spare_tokens < request.prompt_tokens:
            return False
        start = max(step.online_end, step.count_fluid(begin))
        tokens = math.ceil(request.prompt_tokens * step.joiner_share)
        end = start + tokens
        if end > step.count_fluid(last) or state.running >= state.limits.max_num_seqs:
            return False
        state.waiting.popleft()
        state.admit(request, 0)
        size = step.joinable_tokens
        rest = tokens % size
        gap = int((size - rest) * step.overhead_share) if 2 * rest > size else 0
        step.joiners.append((request, start, tokens, gap))
        step.online_end = end
        step.spare_tokens -= request.prompt_tokens
        state.flowing_tokens += request.prompt_tokens
        state.flowed_s = step.begins_s + step.duration_ms(step.count_until(end)) / 1e3
        if step.count > last:
            step.count = last
            self._set_end(step.begins_s + step.duration_ms() / 1e3)
        return True

    def _begin(self, now_s: float) -> None:
        self.version += 1
        begins_s = max(now_s, self._free_s)
        step = self.planner.plan(begins_s)
        self._metrics.steps += 1
        self._stop_share = None
        self.state.flowed_s = math.inf
        if step is None:
            self.ends_s = self.stopping.wake_s(now_s) if self.stopping is not None else math.inf
            return
        factor = self._noise.next_factor()
        step.first_ms *= factor
        step.slope_ms *= factor
        if step.parts:
            step.parts = [
                Part(iterations, first_ms * factor, slope_ms * factor, tokens)
                for iterations, first_ms, slope_ms, tokens in step.parts
            ]
        begins_s += step.lead_ms / 1e3
        step.begins_s = begins_s
        self._step = step
        if step.end_share < 1.0:
            self._stop_share = step.end_share
        self.ends_s = begins_s + step.duration_ms() * (step.end_share - step.done_share) / 1e3
        self.state.flowing_tokens = step.online_end
        if step.online_end:
            self.state.flowed_s = begins_s + step.duration_ms(step.count_until(step.online_end)) / 1e3

    def _interrupt(self, now_s: float, *, for_online: bool, iteration: int | None = None) -> None:
        """Somebody has come: an iteration that can be stopped is, others come to their end."""
        step = self._step
        if step is None:
            if now_s >= self._free_s:
                self._begin(now_s)
            return
        if iteration is None:
            iteration = step.find_iteration((now_s - step.begins_s) * 1e3)
        if for_online and step.is_stoppable and self.stopping is not None:
            share = self.stopping.find_stop_share(step, now_s, iteration)
            if share is not None and share < step.end_share:
                step.count = iteration + 1
                self._stop_share = share
                start_ms = step.duration_ms(iteration)
                last_ms = step.duration_ms(iteration + 1) - start_ms
                self._set_end(step.begins_s + (start_ms + last_ms * (share - step.done_share)) / 1e3)
                return
        if step.count > iteration + 1:
            step.count = iteration + 1
            self._set_end(step.begins_s + step.duration_ms() / 1e3)

    def _set_end(self, ends_s: float) -> None:
        self.version += 1
        self.ends_s = ends_s

    def _finish_stopped(self, step: Step, now_s: float) -> None:
        share, self._stop_share = self._stop_share, None
        if self.stopping is None or share is None:
            return
        if step.count > 1:
            self._progress.apply(step, step.count - 1, now_s, self.planner.kept_free_blocks)
        self._progress.cut_fluid(step)
        self._metrics.busy_s += now_s - step.begins_s
        self._free_s = now_s + self.state.costs.stop_ms / 1e3
        self.stopping.note_stopped(step, now_s, share)
