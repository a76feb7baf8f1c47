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
        if not step.parts:
            return
        left, chunks = step.count_fluid(step.count) - step.count_fluid(step.count - 1), []
        for request in self._state.offline_prompts:
            if left > 0:
                chunks.append(Chunk(request, min(left, request.to_compute)))
                left -= chunks[-1].tokens
        step.chunks, step.parts = chunks, ()

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
        counts = metrics.start_s <= now_s < metrics.end_s
        online, offline_decodes = state.online, step.offline_decodes
        if step.has_online:
            if online.size:
                if counts:
                    self._record_gaps(step, count, now_s)
                    metrics.online_tokens += online.size * count
                state.kv.grow(online.size * count)
                online.advance(count)
            state.last_tokens_s = now_s
        if offline_decodes:
            decoded = max(0, count - step.count_held(count))
            state.offline.advance(decoded, step.held)
            state.kv.grow(offline_decodes * decoded)
            if counts:
                metrics.offline_output_tokens += offline_decodes * decoded
        if step.has_online:
            self._end_online(now_s, counts=counts)
        if offline_decodes:
            self._end_offline(now_s, counts=counts)
        for request, tokens in step.chunks:
            self._compute(request, tokens * count, now_s, counts=counts)
        if step.parts:
            for request, tokens, passed in self._take_prompts(step, count, kept_free_blocks):
                if tokens < request.prompt_tokens + request.produced - request.computed:
                    self._compute(request, tokens, now_s, counts=counts)
                    continue
                # It decodes once its prompt is computed.
                computed = min(count, step.count_until(passed))
                if request.online:
                    computed_s = step.begins_s + step.duration_ms(computed) / 1e3
                    self._compute(request, tokens, computed_s, counts=counts, ahead=count - computed)
                    if counts and computed < count:
                        self._record_joined(step, request, computed, count, now_s)
                else:
                    self._compute(request, tokens, now_s, counts=counts, ahead=count - computed)
            self._end_offline(now_s, counts=counts)
            if step.online_end:
                self._end_online(now_s, counts=counts)

    def _end_online(self, now_s: float, *, counts: bool) -> None:
        state = self._state
        if not state.online.has_ended:
            return
        for request in state.online.pop_ended():
            beyond = state.online.tick - request.end_tick
            if beyond:
                state.kv.grow(-beyond)
                self._metrics.online_tokens -= beyond if counts else 0
            self._finish(request, now_s)

    def _record_joined(self, step: Step, request: SimRequest, computed: int, count: int, now_s: float) -> None:
        """The time between tokens of an online request that has decoded since an iteration of a step."""
        left, metrics = request.output_tokens - request.produced, self._metrics
        if left <= 0:
            return
        for iterations, mean_ms in step.list_gaps(computed, count):
            metrics.add_tbt(now_s, mean_ms, min(iterations, left))
            left -= min(iterations, left)

    def _end_offline(self, now_s: float, *, counts: bool) -> None:
        state = self._state
        if not state.offline.has_ended:
            return
        for request in state.offline.pop_ended():
            beyond = state.offline.tick - request.end_tick
            if beyond:
                state.kv.grow(-beyond)
                self._metrics.offline_output_tokens -= beyond if counts else 0
            self._finish(request, now_s)

    def _take_prompts(self, step: Step, count: int, kept_free_blocks: int) -> Iterator[tuple[SimRequest, int, int]]:
        """The tokens of prompts in turn, online ones first: request, tokens, and which token of the step is the last.

        Offline requests that wait are admitted while there is room.
        """
        state = self._state
        prompts, joiners = state.online_prompts, step.joiners
        passed, tokens = 0, step.count_fluid(count)
        number = owed = 0
        while passed < tokens:
            joiner, start, length, gap = joiners[number] if number < len(joiners) else (None, tokens, 0, 0)
            if passed < start and prompts and prompts[0] is not joiner:
                request, until = prompts[0], tokens
            elif passed < start and owed > 0:
                nobody = min(owed, start - passed, tokens - passed)
                owed -= nobody
                passed += nobody
                continue
            elif passed < start:
                found = self._find_offline(kept_free_blocks) if step.admits or state.offline_prompts else None
                if found is None:
                    passed = start
                    continue
                request, until = found, min(start, tokens)
            elif joiner is not None:
                ends = start + length <= tokens
                part = joiner.to_compute
                if not ends:
                    part = min(part - 1, int((tokens - passed) / step.joiner_share))
                passed = min(start + length, tokens)
                number += 1
                if part > 0:
                    yield joiner, part, passed
                if ends:
                    # Iterations in which it decodes have less time for others.
                    decode_ms = state.decode_ms + state.context_ms * joiner.prompt_tokens
                    owed += gap + int((count - step.count_until(passed)) * decode_ms / state.token_ms)
                continue
            else:
                return
            part = min(until - passed, request.to_compute)
            passed += part
            yield request, part, passed

    def _find_offline(self, kept_free_blocks: int) -> SimRequest | None:
        """The offline request whose prompt comes next; None where there is no room for one."""
        state = self._state
        if state.offline_prompts:
            return state.offline_prompts[0]
        if not len(state.backlog) or state.running >= state.limits.max_num_seqs:
            return None
        request = state.backlog.peek_next()
        cached = state.kv.find_cached(request)
        kept_tokens = kept_free_blocks * state.kv.block_size
        if request.saved_tokens or state.kv.count_needed(request) + kept_tokens > state.kv.free_tokens:
            return None
        state.backlog.pop_next()
        state.admit(request, cached)
        return request

    def _compute(self, request: SimRequest, tokens: int, now_s: float, *, counts: bool, ahead: int = 0) -> None:
        state, metrics = self._state, self._metrics
        request.computed += tokens
        state.kv.grow(tokens)
        if request.online:
            self.prompt_backlog -= min(tokens, self.prompt_backlog)
        computed, prompt_tokens = request.computed, request.prompt_tokens
        new = (computed if computed < prompt_tokens else prompt_tokens) - request.best_prompt
        if new > 0:
            request.best_prompt += new
            if counts and not request.online:
                metrics.offline_prompt_tokens += new
        if computed < prompt_tokens + request.produced:
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
            if state.gate is not None:
                state.gate.note_first(request.number, now_s)
        if request.produced >= request.output_tokens:
            self._finish(request, now_s)
            return
        (state.online if request.online else state.offline).add(request, ahead)
        if ahead:
            state.kv.grow(ahead)
            if counts:
                if request.online:
                    metrics.online_tokens += ahead
                else:
                    metrics.offline_output_tokens += ahead

    def _finish(self, request: SimRequest, now_s: float) -> None:
        self._state.kv.release(request)
        self._state.finished.append(request)
        if request.online:
            self._metrics.add_finished(request.arrival_s, request.first_token_s, now_s, request.output_tokens)
            if self._state.gate is not None:
                self._state.gate.leave(request.number, now_s)
        elif self._metrics.covers(now_s):
            self._metrics.offline_requests += 1

    def _record_gaps(self, step: Step, count: int, now_s: float) -> None:
        """The time between tokens of those who decode: of the first iteration it counts from their last token."""
        state, metrics, decodes = self._state, self._metrics, self._state.online.size
        first_ms = step.first_ms * (1.0 - step.done_share)
        waited_ms = (step.begins_s - state.last_tokens_s) * 1e3
        metrics.add_tbt(now_s, max(0.0, waited_ms) + first_ms, decodes)
        if state.gate is not None:
            state.gate.note_gaps(max(0.0, waited_ms) + first_ms, now_s, decodes)
        if count > 1:
            # Of those who end in the middle, and have no more gaps then, the mean number counts.
            beyond = state.online.count_beyond(count) if state.coarse else 0
            for iterations, mean_ms in reversed(step.list_gaps(1, count)):
                tokens = decodes * iterations
                metrics.add_tbt(now_s, mean_ms, tokens - min(beyond, tokens))
                if state.gate is not None:
                    state.gate.note_gaps(mean_ms, now_s, tokens - min(beyond, tokens))
                beyond -= min(beyond, tokens)
