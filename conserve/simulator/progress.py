"""What iterations that were computed mean for requests, memory and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator

from conserve.simulator.engine_state import EngineState
from conserve.simulator.metrics import Metrics
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Chunk, Step


class Progress:
    """Of one replica's engine.

    Args:
        state: Of the engine.
        metrics: Where to count.

    Attributes:
        prompt_backlog: Prompt tokens of online requests that are not computed.
        longest_ttft_ms: The longest time to a first token; whoever reads it may set it back.
    """

    def __init__(self, state: EngineState, metrics: Metrics) -> None:
        self.prompt_backlog = 0
        self.longest_ttft_ms = 0.0
        self._state = state
        self._metrics = metrics

    def cut_fluid(self, step: Step) -> None:
        """Says of which prompts the last iteration of a step has tokens, where it says only how many."""
        left, chunks = step.fluid_tokens, []
        for request in self._state.offline_prompts:
            if left > 0:
                chunks.append(Chunk(request, min(left, request.to_compute)))
                left -= chunks[-1].tokens
        if step.fluid_tokens:
            step.chunks, step.fluid_tokens = chunks, 0

    def apply(self, step: Step, count: int, now_s: float, kept_free_blocks: int) -> None:
        """So many iterations of a step were computed.

        Args:
            step: Of these.
            count: The first ones of them.
            now_s: When the last of them has ended.
            kept_free_blocks: KV blocks that new offline requests leave free.
        """
        state, metrics = self._state, self._metrics
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
                self._finish(request, now_s)
        if step.offline_decodes:
            self._end_offline(now_s, counts=counts)
        for request, tokens in step.chunks:
            self._compute(request, tokens * count, now_s, counts=counts)
        if step.fluid_tokens:
            passed = 0
            for request, tokens in self._take_prompts(step.fluid_tokens * count, step.admits, kept_free_blocks):
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
        state = self._state
        for request in state.offline.pop_ended():
            beyond = state.offline.tick - request.end_tick
            if beyond:
                state.kv.grow(-beyond)
                self._metrics.offline_output_tokens -= beyond if counts else 0
            self._finish(request, now_s)

    def _take_prompts(self, tokens: int, admits: bool, kept_free_blocks: int) -> Iterator[Chunk]:
        """So many tokens of offline prompts in turn; those that wait are admitted while there is room."""
        state = self._state
        kept_tokens = kept_free_blocks * state.kv.block_size
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
        state, metrics = self._state, self._metrics
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
            self.longest_ttft_ms = max(self.longest_ttft_ms, ttft_ms)
        if request.produced >= request.output_tokens:
            self._finish(request, now_s)
            return
        (state.online if request.online else state.offline).add(request)

    def _finish(self, request: SimRequest, now_s: float) -> None:
        self._state.kv.release(request)
        self._state.finished.append(request)
        if self._metrics.covers(now_s):
            if request.online:
                self._metrics.online_finished += 1
            else:
                self._metrics.offline_requests += 1

    def _record_gaps(self, step: Step, count: int, now_s: float) -> None:
        """The time between tokens of those who decode: of the first iteration it counts from their last token."""
        state, metrics, decodes = self._state, self._metrics, self._state.online.size
        first_ms = step.first_ms * (1.0 - step.done_share)
        waited_ms = (step.begins_s - state.last_tokens_s) * 1e3
        metrics.add_tbt(now_s, max(0.0, waited_ms) + first_ms, decodes)
        if count > 1:
            rest = count - 1
            mean_ms = (step.duration_ms(count) - step.first_ms) / rest
            # Of those who end in the middle, and have no more gaps then, the mean number counts.
            beyond = state.online.count_beyond(count) if state.coarse else 0
            metrics.add_tbt(now_s, mean_ms, decodes * rest - beyond)
