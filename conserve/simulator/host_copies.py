"""KV blocks of offline requests in host memory: which go there, and who comes back from it.

Copies take time on the way but none of the iterations', as on a GPU with a stream for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import itemgetter
from typing import Final

from conserve.policy.checkpoint import (
    Coverage,
    LossRate,
    choose_saves,
    count_blocks_at_risk,
    count_restorable,
    limit_blocks,
    list_drops,
)
from conserve.policy.preemption import PLENTY_SHARE
from conserve.simulator.engine_state import EngineState
from conserve.simulator.request import SimRequest

_first = itemgetter(0)
COPY_SHARE: Final = 0.1
"""Part of the time in which blocks may be copied: `engine.host_copy_share`."""
LONGEST_PAUSE_S: Final = 0.1
COARSE_PAUSE_S: Final = 0.5
REST_S: Final = 0.02
"""As in the engine's `saving.py`; a coarse step stands for many iterations, with each of which blocks are copied."""
MOST_LAST_BLOCKS: Final = 1
"""As in the engine's `checkpoints.py`: so many full blocks not saved yet are copied at a preemption."""


class HostCopies:
    """Copies of one replica.

    Args:
        state: Of its engine.
    """

    def __init__(self, state: EngineState) -> None:
        costs = state.costs
        self._state = state
        self._block_s = costs.block_bytes / costs.copy_bytes_per_s
        self._slots = int(costs.host_kv_gib * 2**30 / costs.block_bytes)
        self._used_slots = 0
        self._losses = LossRate()
        self._allowance = 0.0
        self._allowed_s = self._rests_until_s = -math.inf
        self._landing: SimRequest | None = None
        self._landed_s = math.inf

    @property
    def landed_s(self) -> float:
        """When the request that is on its way back is there; `inf` if there is none."""
        return self._landed_s

    @property
    def is_landing(self) -> bool:
        """Whether there is one."""
        return self._landing is not None

    # What goes.

    def count_saved_blocks(self, request: SimRequest) -> int:
        """Leading full blocks of a request that are in host memory."""
        return request.saved_tokens // self._state.kv.block_size

    def count_saved_of_running(self) -> int:
        """KV blocks that can be given up at the cost of a copy; what is not saved of a request counts against it."""
        if not self._used_slots:
            return 0
        state, total = self._state, 0
        size, tick = state.kv.block_size, state.offline.tick
        for group, now in ((state.offline, tick), (state.offline_prompts, None)):
            for request in group:
                if request.saved_tokens:
                    passed = 0 if now is None else now - request.joined_tick
                    blocks = (request.computed + passed) // size
                    saved = min(request.saved_tokens // size, blocks)
                    total += max(0, 2 * saved - blocks)
        return total

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to look for blocks to copy."""
        return not self._state.coarse or now_s >= self._allowed_s + COARSE_PAUSE_S

    def save(self, now_s: float, burst_blocks: int, wanted_blocks: int) -> None:
        """Has blocks copied that will probably be taken soon."""
        state = self._state
        passed_s = min(COARSE_PAUSE_S if state.coarse else LONGEST_PAUSE_S, now_s - self._allowed_s)
        self._allowed_s = now_s
        most = max(1.0, (COARSE_PAUSE_S if state.coarse else LONGEST_PAUSE_S) * COPY_SHARE / self._block_s)
        allowed = limit_blocks(passed_s, COPY_SHARE, self._block_s, has_online=state.has_online)
        self._allowance = min(self._allowance + allowed, most)
        at_risk = count_blocks_at_risk(state.kv.free_blocks, burst_blocks, wanted_blocks, self._losses.at(now_s))
        if not at_risk or self._allowance < 1.0 or now_s < self._rests_until_s:
            return
        if not state.offline.size + len(state.offline_prompts):
            return
        requests = {request.key: request for request in reversed(state.list_offline())}
        ranked = self._rank(requests.values())
        saved = 0
        for request_id, blocks in choose_saves(ranked, at_risk, int(self._allowance)):
            saved += self._copy(requests[request_id], blocks, ranked, requests)
        if not saved:
            self._rests_until_s = now_s + REST_S
        self._allowance -= saved
        state.metrics.saved_blocks += saved

    def _rank(self, requests: Iterable[SimRequest]) -> list[Coverage]:
        """Who gives way first: whoever loses least for each block."""
        state = self._state
        size, offline = state.kv.block_size, state.offline
        ranked = []
        is_unsaved = False
        for request in requests:
            computed = offline.computed_of(request) if request in offline else request.computed
            freed = -(-(computed - request.cached) // size)
            full, saved = computed // size, request.saved_tokens // size
            unsaved = full - saved if full > saved else 0
            is_unsaved |= unsaved > 0
            ranked.append((unsaved / (freed or 1), Coverage(request.key, freed, full, saved)))
        if not is_unsaved:
            return []
        ranked.sort(key=_first)
        return [coverage for _, coverage in ranked]

    def _copy(self, request: SimRequest, blocks: int, ranked: list[Coverage], requests: dict[str, SimRequest]) -> int:
        if self._used_slots + blocks > self._slots:
            for victim in list_drops(reversed(ranked), request.key):
                self._drop(requests[victim.request_id])
                if self._used_slots + blocks <= self._slots:
                    break
            blocks = min(blocks, self._slots - self._used_slots)
        self._used_slots += blocks
        size = self._state.kv.block_size
        request.saved_tokens = (request.saved_tokens // size + blocks) * size
        return blocks

    def note_preempted(self, request: SimRequest, computed: int, now_s: float, *, for_blocks: bool) -> None:
        """A request has given up its blocks, of which it had computed so many tokens. The last ones are copied now."""
        kv = self._state.kv
        full, saved = computed // kv.block_size, self.count_saved_blocks(request)
        if full - saved <= MOST_LAST_BLOCKS and self._used_slots + full - saved < self._slots:
            self._used_slots += full - saved
            request.saved_tokens = computed
        if for_blocks or kv.free_blocks < PLENTY_SHARE * kv.blocks:
            self._losses.observe(now_s, kv.blocks_for(computed))

    def forget(self, request: SimRequest) -> None:
        """A request has come to its end."""
        if request.saved_tokens:
            self._drop(request)

    def _drop(self, request: SimRequest) -> None:
        self._used_slots = max(0, self._used_slots - self.count_saved_blocks(request))
        request.saved_tokens = 0

    # What comes.

    def bring_back(self, now_s: float, kept_free: int) -> bool:
        """Has the next waiting request brought back, if it has something in host memory.

        Returns:
            Whether those that wait have to wait for it: it is on its way, or there is no room for it.
        """
        state = self._state
        if self._landing is not None:
            if now_s >= self._landed_s:
                landed, self._landing, self._landed_s = self._landing, None, math.inf
                state.kv.used -= landed.computed + state.kv.block_size // 2
                restored, landed.computed = landed.computed, 0
                state.admit(landed, restored)
                return False
            return True
        if not len(state.backlog):
            return False
        request = state.backlog.peek_next()
        if not request.saved_tokens:
            return False
        size = state.kv.block_size
        cached = state.kv.find_cached(request)
        blocks = count_restorable(self.count_saved_blocks(request), cached // size, request.total_tokens, size)
        tokens = min(max(request.saved_tokens, blocks * size), request.total_tokens - 1)
        if tokens <= cached:
            return False
        if state.kv.blocks_for(request.total_tokens) + kept_free > state.kv.free_blocks:
            return True
        state.backlog.pop_next()
        request.computed = tokens
        state.kv.grow(tokens + size // 2)
        coming = state.kv.blocks_for(tokens - cached)
        state.metrics.restored_blocks += coming
        self._landing = request
        self._landed_s = now_s + coming * self._block_s
        return True

    def release(self) -> bool:
        """Gives back what is held for the request on its way; False if there is none."""
        request, self._landing, self._landed_s = self._landing, None, math.inf
        if request is None:
            return False
        state = self._state
        state.kv.used -= request.computed + state.kv.block_size // 2
        computed, request.computed = request.computed, 0
        state.backlog.add_front(request.number, request, (request.prefix,) if request.prefix else (), computed)
        return True
