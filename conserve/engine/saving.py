"""Which KV blocks of running requests go to host memory with the next batch, and what makes room for them there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from conserve.engine.host_pool import HostPool
from conserve.engine.page import Counters
from conserve.engine.vllm_blocks_compat import is_restorable, list_block_ids_between, list_hashes
from conserve.engine.vllm_compat import Request, Scheduler, count_freed_blocks
from conserve.policy.checkpoint import (
    Coverage,
    LossRate,
    choose_saves,
    count_blocks_at_risk,
    limit_blocks,
    list_drops,
)

FIRST_COPY_BYTES_PER_S = 2e9
"""How fast blocks are copied, until some have been."""
LONGEST_PAUSE_S = 0.1
"""Of the time in which nothing was copied, no more counts for how much may be copied now."""
REST_S = 0.02
"""Where there was nothing to copy, it is not looked for again for so long."""
PIECE_S = 0.01
"""Blocks come back in pieces that take so long: whoever needs one of their blocks for something else waits for it."""
ORDER_S = 0.25
"""Who gives way first is not found out anew for so long."""
MOST_SLOWER = 4.0
"""A copy that took longer than so many times the usual had to wait for something else."""
_SLOWER_WEIGHT, _FASTER_WEIGHT = 0.2, 0.5


class Pressure(NamedTuple):
    """What KV blocks will be wanted for.

    Attributes:
        burst_blocks: By the largest burst of online requests to expect.
        wanted_blocks: By running requests for their next tokens, and by the offline request that goes on next.
        has_online: Whether online requests are computed now.
    """

    burst_blocks: int
    wanted_blocks: int
    has_online: bool


class Saving:
    """Chooses blocks to copy, those first that are taken first, no more than will probably be taken soon.

    Args:
        scheduler: vLLM's.
        pool: What is in host memory.
        block_bytes: Of one block, on all workers.
        copy_share: Part of the time that copies may take.
        counters: Where to count.
    """

    def __init__(
        self, scheduler: Scheduler, pool: HostPool, block_bytes: int, copy_share: float, counters: Counters
    ) -> None:
        self.losses = LossRate()
        self._scheduler = scheduler
        self._pool = pool
        self._copy_share = copy_share
        self._counters = counters
        self._block_s = block_bytes / FIRST_COPY_BYTES_PER_S
        self._allowance = 0.0
        self._allowed_s = -math.inf
        self._rests_until_s = -math.inf
        self._order: list[str] = []
        self._ordered_s = -math.inf
        self._uncovered: dict[str, int] = {}
        self._freed: dict[str, int] = {}

    @property
    def piece_blocks(self) -> int:
        """Blocks that may come back with one batch."""
        return max(1, int(PIECE_S / self._block_s))

    def count_freed_blocks(self, request_id: str) -> int:
        """KV blocks that the preemption of a request made free when that was last found out; 0 if it was not."""
        return self._freed.get(request_id, 0)

    def note_copied(self, blocks: int, seconds: float) -> None:
        """So many blocks were copied in so long."""
        measured_s = min(seconds / blocks, MOST_SLOWER * self._block_s)
        weight = _SLOWER_WEIGHT if measured_s > self._block_s else _FASTER_WEIGHT
        self._block_s += weight * (measured_s - self._block_s)

    def charge(self, blocks: int) -> None:
        """Blocks that come back take their part of the time, too."""
        self._allowance = max(self._allowance - blocks, -LONGEST_PAUSE_S / self._block_s)

    def forget(self, request_ids: Iterable[str]) -> None:
        """Requests run no more."""
        for request_id in request_ids:
            self._uncovered.pop(request_id, None)
            self._freed.pop(request_id, None)

    def choose(
        self,
        list_offline: Callable[[], Sequence[Request]],
        count_done_tokens: Callable[[Request], int],
        pressure: Pressure,
        now_s: float,
    ) -> list[tuple[int, int]]:
        """What to copy with the next batch: from KV block to slot.

        Args:
            list_offline: Gives the running offline requests, the oldest first; in most steps nobody asks for them.
            count_done_tokens: Leading tokens of a request whose KV is there for sure.
            pressure: What blocks will be wanted for.
            now_s: Now.
        """
        passed_s = min(LONGEST_PAUSE_S, now_s - self._allowed_s)
        self._allowed_s = now_s
        most = max(1.0, LONGEST_PAUSE_S * self._copy_share / self._block_s)
        allowed = limit_blocks(passed_s, self._copy_share, self._block_s, has_online=pressure.has_online)
        self._allowance = min(self._allowance + allowed, most)
        free = self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        at_risk = count_blocks_at_risk(free, pressure.burst_blocks, pressure.wanted_blocks, self.losses.at(now_s))
        if not at_risk or self._allowance < 1.0 or now_s < self._rests_until_s:
            return []
        requests = {request.request_id: request for request in reversed(list_offline()) if is_restorable(request)}
        covered: dict[str, Coverage] = {}

        def cover(request_ids: Iterable[str]) -> Iterator[Coverage]:
            for request_id in request_ids:
                if request_id not in covered:
                    covered[request_id] = self._cover(requests[request_id], count_done_tokens)
                yield covered[request_id]

        order = self._find_order(requests, cover, now_s)
        saves: list[tuple[int, int]] = []
        for request_id, blocks in choose_saves(cover(order), at_risk, int(self._allowance)):
            saves += self._save(requests[request_id], blocks, covered[request_id].full_blocks, cover(reversed(order)))
        if not saves:
            self._rests_until_s = now_s + REST_S
        self._allowance -= len(saves)
        self._counters.saved_blocks += len(saves)
        return saves

    def _find_order(
        self, requests: dict[str, Request], cover: Callable[[Iterable[str]], Iterator[Coverage]], now_s: float
    ) -> list[str]:
        """Who gives way first: as `policy.preemption` chooses, whoever loses least for each block."""
        if now_s >= self._ordered_s + ORDER_S:
            self._ordered_s = now_s
            ranked = sorted(cover(requests), key=lambda each: each.unsaved_blocks / max(1, each.freed_blocks))
            self._order = [each.request_id for each in ranked]
            return self._order
        known = set(self._order)
        # Who is new has nothing to lose yet.
        new = [request_id for request_id in requests if request_id not in known]
        return new + [request_id for request_id in self._order if request_id in requests]

    def _cover(self, request: Request, count_done_tokens: Callable[[Request], int]) -> Coverage:
        hashes = list_hashes(request, count_done_tokens(request) // int(self._scheduler.block_size))
        saved = self._pool.join(request.request_id, hashes)
        freed = self._freed[request.request_id] = count_freed_blocks(self._scheduler, request)
        return Coverage(request.request_id, freed, len(hashes), saved)

    def _save(
        self, request: Request, blocks: int, full_blocks: int, last_first: Iterable[Coverage]
    ) -> list[tuple[int, int]]:
        request_id = request.request_id
        hashes = list_hashes(request, full_blocks)
        saves: list[tuple[int, int]] = []
        for left in range(blocks, 0, -1):
            # Another one may have saved the same block in this step.
            number = self._pool.join(request_id, hashes)
            if number >= len(hashes):
                break
            if not self._pool.free_slots and not self._drop(last_first, request_id, left):
                self._count_uncovered(request_id, number, min(number + left, len(hashes)))
                break
            slot = self._pool.add(request_id, hashes[number])
            (block,) = list_block_ids_between(self._scheduler, request, number, number + 1)
            saves.append((block, slot))
        return saves

    def _drop(self, last_first: Iterable[Coverage], saved_for: str, blocks: int) -> int:
        """Makes room in host memory. Returns how many slots have become free: what is shared stays."""
        freed = 0
        for victim in list_drops(last_first, saved_for):
            saved = self._pool.count_saved(victim.request_id)
            freed += self._pool.cut(victim.request_id, max(0, saved - (blocks - freed)))
            if freed >= blocks:
                break
        self._counters.dropped_blocks += freed
        return freed

    def _count_uncovered(self, request_id: str, start: int, end: int) -> None:
        """Each block once, however often it is tried."""
        self._counters.uncovered_blocks += max(0, end - max(start, self._uncovered.get(request_id, 0)))
        self._uncovered[request_id] = max(end, self._uncovered.get(request_id, 0))
