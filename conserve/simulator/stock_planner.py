"""vLLM's own scheduling, with `scheduling_policy="priority"` or with online requests first in every batch.

- `priority`: those that run get their tokens in the order in which they were admitted, prompts as large a part of the
  batch as is left; online requests are admitted before offline ones. Nobody is preempted for one that waits.
- `fcfs`: likewise, but requests are admitted in the order in which they came, whatever they are.
- `chunked`: as Sarathi-Serve with priorities: a batch holds all that decode, then online prompts, then offline ones up
  to its size, and an offline request is preempted where an online one lacks a slot or memory.
"""

from __future__ import annotations

from collections.abc import Callable

from conserve.policy.latency import IterationShape
from conserve.simulator.engine_state import EngineState
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Chunk, Step


class StockPlanner:
    """Plans iterations as vLLM does.

    Args:
        state: Of the engine.
        online_first: Whether offline requests make way for online ones that wait.
        in_order: Whether all are admitted in the order in which they came.
    """

    def __init__(self, state: EngineState, *, online_first: bool = False, in_order: bool = False) -> None:
        self._state = state
        self._online_first = online_first
        self._in_order = in_order
        self._admitted = 0
        state.backlog.ordered = False

    @property
    def kept_free_blocks(self) -> int:
        """KV blocks that new offline requests leave free."""
        return 1

    def note_arrival(self, request: SimRequest, now_s: float) -> None:
        """An online request has come."""

    def count_ahead_tokens(self) -> int:
        """Offline prompt tokens that are computed before an online request that would come now."""
        state = self._state
        if self._online_first:
            return 0
        ahead = sum(request.to_compute for request in state.offline_prompts)
        if self._in_order and len(state.backlog):
            ahead += state.backlog.peek_next().to_compute * len(state.backlog)
        return ahead

    def count_free_slots(self) -> int:
        """Slots for online requests that would come now."""
        state = self._state
        taken = state.running - state.offline_running + len(state.backlog) if self._online_first else state.running
        return state.limits.max_num_seqs - taken - len(state.waiting)

    def plan(self, now_s: float) -> Step | None:
        """The next iterations; None if there is nothing to compute."""
        state = self._state
        if self._online_first:
            self._make_way()
        left = state.limits.max_num_batched_tokens
        self._make_room()
        online = min(state.online.size, left)
        left -= online
        offline = min(state.offline.size, left)
        left -= offline
        shape = IterationShape(
            decode_sequences=online + offline, decode_context=state.online.context + state.offline.context
        )
        chunks: list[Chunk] = []
        threshold = state.limits.long_prefill_token_threshold
        spare = state.kv.free_tokens - online - offline

        def take(request: SimRequest) -> bool:
            nonlocal left, shape, spare
            tokens = min(request.to_compute, left, threshold or left, max(0, spare))
            if tokens <= 0:
                return False
            shape = shape.add_prefill(tokens, request.computed)
            chunks.append(Chunk(request, tokens))
            left -= tokens
            spare -= tokens
            return True

        if self._online_first:
            running = [*state.online_prompts, *state.offline_prompts]
            for request in state.online_prompts:
                take(request)
            self._admit_online(take, lambda: left > 0)
            for request in running:
                if not request.online:
                    take(request)
        else:
            for request in sorted([*state.online_prompts, *state.offline_prompts], key=lambda one: one.joined_tick):
                take(request)
            if self._in_order:
                self._admit_in_order(take, lambda: left > 0)
            elif not self._admit_online(take, lambda: left > 0):
                left = 0
        if left > 0 and not state.waiting and not self._in_order:
            self._admit_offline(take, lambda: left > 0)
        if not shape.tokens:
            return None
        step = Step(
            shape,
            state.time_ms(shape),
            online_decodes=online > 0,
            chunks=chunks,
            offline_decodes=offline,
            has_online=online > 0 or any(chunk.request.online for chunk in chunks),
        )
        step.slope_ms = state.find_slope_ms(step)
        state.bound_count(step, max(0, state.kv.free_tokens))
        return step

    def _admit_online(self, take: Callable[[SimRequest], bool], has_left: Callable[[], bool]) -> bool:
        """Admits online requests; False if one has to wait, and so all that come after it."""
        state = self._state
        while state.waiting:
            request = state.waiting[0]
            if not has_left() or not self._fits(request):
                return False
            cached = state.kv.find_cached(request)
            state.waiting.popleft()
            self._begin(request, cached)
            if not take(request):
                return False
        return True

    def _admit_in_order(self, take: Callable[[SimRequest], bool], has_left: Callable[[], bool]) -> None:
        """Admits whoever came first."""
        state = self._state
        while state.waiting or len(state.backlog):
            request = state.backlog.peek_next() if len(state.backlog) else state.waiting[0]
            if state.waiting and state.waiting[0].arrival_s <= request.arrival_s:
                request = state.waiting[0]
            if not has_left() or not self._fits(request):
                return
            cached = state.kv.find_cached(request)
            if request.online:
                state.waiting.popleft()
            else:
                state.backlog.pop_next()
            self._begin(request, cached)
            if not take(request):
                return

    def _admit_offline(self, take: Callable[[SimRequest], bool], has_left: Callable[[], bool]) -> None:
        state = self._state
        while len(state.backlog):
            request = state.backlog.peek_next()
            if not has_left() or not self._fits(request):
                return
            cached = state.kv.find_cached(request)
            state.backlog.pop_next()
            self._begin(request, cached)
            if not take(request):
                return

    def _begin(self, request: SimRequest, cached: int) -> None:
        self._state.admit(request, cached)
        self._admitted += 1
        request.joined_tick = self._admitted

    def _fits(self, request: SimRequest) -> bool:
        state = self._state
        if state.running >= state.limits.max_num_seqs:
            return False
        wanted = state.kv.count_needed(request)
        promised = sum(other.to_compute for other in (*state.online_prompts, *state.offline_prompts))
        return wanted + promised + state.kv.block_size <= state.kv.free_tokens

    def _make_room(self) -> None:
        """While those that decode have no room for their next tokens, the youngest of the lowest priority goes."""
        state = self._state
        while state.kv.free_tokens < state.online.size + state.offline.size:
            offline = state.list_offline()
            if len(offline) > (0 if state.has_online else 1):
                self._drop(offline[-1])
                continue
            online = [*state.online]
            if len(online) < 2:
                return
            self._drop(online[-1])

    def _make_way(self) -> None:
        state = self._state
        for request in [*state.waiting]:
            while not self._fits(request) and (offline := state.list_offline()):
                self._drop(offline[-1])

    def _drop(self, request: SimRequest) -> None:
        lost = self._state.preempt(request, stays=True)
        self._state.metrics.recomputed_tokens += lost
