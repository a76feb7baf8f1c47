"""One replica in virtual time: its engine's steps, and what arrivals, failures and draining do to them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Protocol

from conserve.policy.allotment import ReplicaCapacity, ReplicaState
from conserve.policy.latency import IterationShape
from conserve.simulator.engine_costs import EngineCosts
from conserve.simulator.engine_state import EngineLimits, EngineState
from conserve.simulator.metrics import Metrics
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Chunk, Step


class Planner(Protocol):
    """Decides what the engine computes next."""

    @property
    def kept_free_blocks(self) -> int:
        """KV blocks that new offline requests leave free."""

    def note_arrival(self, request: SimRequest, now_s: float) -> None:
        """An online request has come."""

    def plan(self, now_s: float) -> Step | None:
        """The next iterations; None if there is nothing to compute now."""


class StoppingPlanner(Planner, Protocol):
    """One whose passes can be stopped."""

    def find_stop_share(self, step: Step, now_s: float, iteration: int) -> float | None:
        """Which share of a running iteration's layers is computed when it stops for an arrival; None: it does not."""

    def note_stopped(self, step: Step, now_s: float, share: float) -> None:
        """An iteration was stopped with this share of its layers computed."""

    def note_done(self, step: Step, now_s: float) -> None:
        """A step has come to its end."""

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
        self.version = 0
        """Goes up whenever the end of the step under way changes."""
        self.ends_s = math.inf
        self.prompt_backlog = 0
        """Prompt tokens of online requests that are not computed."""
        self._metrics = metrics
        self._noise = costs.noise
        self._random = random.Random(seed * 1_000_003 + number)  # noqa: S311 - a simulation
        self._step: Step | None = None
        self._stop_share: float | None = None
        self._free_s = 0.0
        self._longest_ttft_ms = 0.0

    # What the cluster calls.

    def arrive(self, request: SimRequest, now_s: float) -> None:
        """An online request comes in."""
        self.state.waiting.append(request)
        self.prompt_backlog += request.prompt_tokens
        self.planner.note_arrival(request, now_s)
        self._interrupt(now_s, for_online=True)

    def feed(self, request: SimRequest, now_s: float) -> None:
        """An offline request comes in; a step that leaves it no room goes on."""
        self.state.add_offline(request)
        if self._step is None or (self._step.count > 1 and len(self.state.backlog) == 1):
            self._interrupt(now_s, for_online=False)

    def end_step(self, now_s: float) -> None:
        """The step under way has come to its end, or it is time to look again."""
        step, self._step = self._step, None
        if step is not None:
            if self._stop_share is not None:
                self._finish_stopped(step, now_s)
            else:
                self._apply(step, step.count, now_s)
                if self.stopping is not None:
                    self.stopping.note_done(step, now_s)
        self._begin(now_s)

    def report(self) -> ReplicaCapacity:
        """What the replica says about itself."""
        state = self.state
        return ReplicaCapacity(
            self.name,
            "model",
            self.status,
            online_running=state.online.size,
            online_waiting=len(state.waiting) + len(state.online_prompts),
            kv_usage=state.kv.usage,
            offline_running=state.offline_running,
        )

    def predict_ttft_ms(self, prompt_tokens: int) -> float:
        """Time to the first token of a request that would come now, roughly: what comes before it, and its prompt."""
        state = self.state
        shape = IterationShape().add_prefill(self.prompt_backlog + prompt_tokens, 0)
        return state.model.predict_ms(shape) + state.costs.decode_ms * state.online.size

    def take_longest_ttft_ms(self) -> float:
        """The longest time to a first token since this was asked last; 0 without any."""
        longest_ms, self._longest_ttft_ms = self._longest_ttft_ms, 0.0
        return longest_ms

    def fail(self) -> tuple[list[SimRequest], list[SimRequest]]:
        """The process is gone. Returns its online and its offline requests, as they were before they began."""
        state = self.state
        online = [*state.waiting, *state.online_prompts, *state.online]
        offline = [*state.backlog, *state.offline_prompts, *state.offline]
        self.state = EngineState(state.costs, state.limits, state.metrics, coarse=state.coarse)
        self._step = self._stop_share = None
        self.prompt_backlog = 0
        self.version += 1
        self.ends_s = math.inf
        self.status = "starting"
        return online, offline

    # Steps.

    def _begin(self, now_s: float) -> None:
        self.version += 1
        begins_s = max(now_s, self._free_s)
        step = self.planner.plan(begins_s)
        self._metrics.steps += 1
        self._stop_share = None
        if step is None:
            self.ends_s = self.stopping.wake_s(now_s) if self.stopping is not None else math.inf
            return
        if self._noise:
            factor = math.exp(self._random.gauss(0.0, self._noise))
            step.first_ms *= factor
            step.slope_ms *= factor
        begins_s += step.lead_ms / 1e3
        step.begins_s = begins_s
        self._step = step
        if step.end_share < 1.0:
            self._stop_share = step.end_share
        self.ends_s = begins_s + step.duration_ms() * (step.end_share - step.done_share) / 1e3

    def _interrupt(self, now_s: float, *, for_online: bool) -> None:
        """Somebody has come: an iteration that can be stopped is, others come to their end."""
        step = self._step
        if step is None:
            if now_s >= self._free_s:
                self._begin(now_s)
            return
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
            self._apply(step, step.count - 1, now_s)
        if step.fluid_tokens:
            left, chunks = step.fluid_tokens, []
            for request in self.state.offline_prompts:
                if left > 0:
                    chunks.append(Chunk(request, min(left, request.to_compute)))
                    left -= chunks[-1].tokens
            step.chunks, step.fluid_tokens = chunks, 0
        self._metrics.busy_s += now_s - step.begins_s
        self._free_s = now_s + self.state.costs.stop_ms / 1e3
        self.stopping.note_stopped(step, now_s, share)

    def _apply(self, step: Step, count: int, now_s: float) -> None:
        """So many iterations of a step were computed."""
        state, metrics = self.state, self._metrics
        metrics.iterations += count
        metrics.busy_s += now_s - step.begins_s
        counts = metrics.covers(now_s)
        if step.has_online:
            if state.online.size:
                self._record_gaps(step, count, now_s)
                metrics.online_tokens += state.online.size * count if counts else 0
                state.kv.grow(state.online.size * count)
                state.online.advance(count)
            state.last_tokens_s = now_s
        if step.offline_decodes:
            state.offline.advance(count, step.held)
            state.kv.grow(step.offline_decodes * count)
            if counts:
                metrics.offline_output_tokens += step.offline_decodes * count
        if step.has_online:
            for request in state.online.pop_ended():
                beyond = state.online.tick - request.end_tick
                if beyond:
                    state.kv.grow(-beyond)
                    metrics.online_tokens -= beyond if counts else 0
                self._end(request, now_s)
        if step.offline_decodes:
            self._end_offline(now_s, counts=counts)
        for request, tokens in step.chunks:
            self._compute(request, tokens * count, now_s, counts=counts)
        if step.fluid_tokens:
            passed = 0
            for request, tokens in self._take_prompts(step.fluid_tokens * count, step.admits):
                passed += tokens
                self._compute(request, tokens, now_s, counts=counts)
                if request in state.offline:
                    # It has decoded since its prompt was computed.
                    ahead = count - -(-passed // step.fluid_tokens)
                    state.offline.go_ahead(request, ahead)
                    state.kv.grow(ahead)
                    metrics.offline_output_tokens += ahead if counts else 0
            self._end_offline(now_s, counts=counts)

    def _end_offline(self, now_s: float, *, counts: bool) -> None:
        state = self.state
        for request in state.offline.pop_ended():
            beyond = state.offline.tick - request.end_tick
            if beyond:
                state.kv.grow(-beyond)
                self._metrics.offline_output_tokens -= beyond if counts else 0
            self._end(request, now_s)

    def _take_prompts(self, tokens: int, admits: bool) -> Iterator[Chunk]:
        """So many tokens of offline prompts in turn; those that wait are admitted while there is room."""
        state = self.state
        kept_tokens = self.planner.kept_free_blocks * state.kv.block_size
        while tokens > 0:
            if state.offline_prompts:
                request = state.offline_prompts[0]
            else:
                if not admits or not len(state.backlog) or state.running >= state.limits.max_num_seqs:
                    return
                request = state.backlog.peek_next()
                cached = state.kv.find_cached(request)
                if request.saved_tokens or state.kv.count_needed(request) + kept_tokens > state.kv.free_tokens:
                    return
                state.backlog.pop_next()
                state.admit(request, cached)
            part = min(tokens, request.to_compute)
            tokens -= part
            yield Chunk(request, part)

    def _compute(self, request: SimRequest, tokens: int, now_s: float, *, counts: bool) -> None:
        state, metrics = self.state, self._metrics
        request.computed += tokens
        state.kv.grow(tokens)
        if request.online:
            self.prompt_backlog -= min(tokens, self.prompt_backlog)
        new = min(request.computed, request.prompt_tokens) - request.best_prompt
        if new > 0:
            request.best_prompt += new
            if counts and not request.online:
                metrics.offline_prompt_tokens += new
        if request.to_compute > 0:
            return
        # Its prompt is computed, and with it comes the next token.
        state.kv.note_computed(request)
        prompts = state.online_prompts if request.online else state.offline_prompts
        prompts.remove(request)
        request.produced += 1
        if counts:
            if request.online:
                metrics.online_tokens += 1 + (request.prompt_tokens if request.produced == 1 else 0)
            else:
                metrics.offline_output_tokens += 1
        if request.online and request.first_token_s == math.inf:
            request.first_token_s = now_s
            ttft_ms = (now_s - request.arrival_s) * 1e3 + state.costs.front_ms
            metrics.add_ttft(request.arrival_s, ttft_ms)
            self._longest_ttft_ms = max(self._longest_ttft_ms, ttft_ms)
        if request.produced >= request.output_tokens:
            self._end(request, now_s)
            return
        (state.online if request.online else state.offline).add(request)

    def _end(self, request: SimRequest, now_s: float) -> None:
        self.state.kv.release(request)
        self.state.finished.append(request)
        if self._metrics.covers(now_s):
            if request.online:
                self._metrics.online_finished += 1
            else:
                self._metrics.offline_requests += 1

    def _record_gaps(self, step: Step, count: int, now_s: float) -> None:
        """The time between tokens of those who decode: of the first iteration it counts from their last token."""
        state, metrics, decodes = self.state, self._metrics, self.state.online.size
        first_ms = step.first_ms * (1.0 - step.done_share)
        waited_ms = (step.begins_s - self.state.last_tokens_s) * 1e3
        metrics.add_tbt(now_s, max(0.0, waited_ms) + first_ms, decodes)
        if count > 1:
            rest = count - 1
            mean_ms = (step.duration_ms(count) - step.first_ms) / rest
            # Of those who end in the middle, and have no more gaps then, the mean number counts.
            beyond = state.online.count_beyond(count) if state.coarse else 0
            metrics.add_tbt(now_s, mean_ms, decodes * rest - beyond)
