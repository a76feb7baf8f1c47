"""KV blocks that come back from host memory for requests that are about to go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from conserve.engine.host_pool import HostPool
from conserve.engine.page import Counters
from conserve.engine.vllm_blocks_compat import Landed, add_tail, finds_cached, land, let_go
from conserve.engine.vllm_compat import Request, Scheduler, look_up_admission, uncache_blocks
from conserve.policy.checkpoint import count_restorable, count_tail_tokens

Readiness = Literal["ready", "coming", "no room"]
"""Of a waiting request: it has nothing to wait for; its blocks are on their way; there is no room for them yet."""
LANDED_S = 5.0
"""Blocks that have come back are kept for so long for a request that does not go on."""


@dataclass
class _Landing:
    """Blocks that are held for a waiting request.

    Attributes:
        landed: All of them.
        until_s: When they are given up.
        unsent: Those that are not on their way yet: from slot to KV block.
        tail_tokens: That the block holds which is not full; 0 without one.
        job: Number of the last copy that brings some of them; 0 before the first.
    """

    landed: Landed
    until_s: float
    unsent: deque[tuple[int, int]]
    tail_tokens: int
    job: int = 0


class Landings:
    """Has blocks of waiting requests brought back into the prefix cache, and holds them there until they are taken up.

    They come in pieces, so that nobody has to wait for long who gets a block that one of them is copied to.

    Args:
        scheduler: vLLM's.
        pool: What is in host memory.
        counters: Where to count.

    Attributes:
        done_job: All copies up to this number have been made.
    """

    def __init__(self, scheduler: Scheduler, pool: HostPool, counters: Counters) -> None:
        self.done_job = 0
        self._scheduler = scheduler
        self._pool = pool
        self._counters = counters
        self._held: dict[str, _Landing] = {}
        self._origins: dict[int, int] = {}

    def prefetch(self, request: Request, kept_free: int, now_s: float, *, is_first: bool) -> Readiness:
        """Has the blocks of a request that goes on soon brought back, if there is room for all of it.

        Args:
            request: It waits.
            kept_free: KV blocks that others need.
            now_s: Now.
            is_first: Whether nobody waits before it.
        """
        request_id = request.request_id
        if (mine := self._held.get(request_id)) is not None:
            return "coming" if mine.unsent or mine.job > self.done_job else "ready"
        saved, tail = self._pool.count_saved(request_id), self._pool.find_tail(request_id)
        if not (saved or tail or self._held) or not finds_cached(request):
            return "ready"
        size = int(self._scheduler.block_size)
        while True:
            admission = look_up_admission(self._scheduler, request)
            cached = admission.cached_tokens // size
            blocks = count_restorable(saved, cached, request.num_tokens, size)
            room = self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks() - kept_free - admission.blocks
            # vLLM copies a block that is not full to another one.
            fits_tail = tail is not None and tail.blocks == blocks and room > 0
            tail_tokens = count_tail_tokens(tail.tokens, blocks, request.num_tokens, size) if tail and fits_tail else 0
            if room >= 0:
                break
            # What is held for those who come after it may be in its way.
            if not is_first or not self.release():
                return "no room" if blocks > cached else "ready"
        if blocks <= cached and not tail_tokens:
            return "ready"
        landed = land(self._scheduler, request, blocks, has_tail=tail_tokens > 0)
        loads = deque(zip(self._pool.find_slots(request_id, cached, blocks), landed.new, strict=True))
        if tail is not None and landed.tail is not None:
            loads.append((tail.slot, landed.tail.block_id))
        self._origins.update((block, slot) for slot, block in loads)
        self._held[request_id] = _Landing(landed, now_s + LANDED_S, loads, tail_tokens)
        return "coming"

    @property
    def unsent_blocks(self) -> int:
        """Blocks that are held and not on their way yet."""
        return sum(len(landing.unsent) for landing in self._held.values())

    def extend_hit(self, request: Request, hit: Any) -> Any:
        """What is found for a waiting request: what vLLM has found in the prefix cache, and its block that is not full.

        Args:
            request: It waits.
            hit: Of vLLM's `_get_local_prefix_cache_hit`.
        """
        landing = self._held.get(request.request_id)
        if landing is None or not landing.tail_tokens or len(hit[0].blocks[0]) != len(landing.landed.blocks):
            return hit
        return add_tail(self._scheduler, hit, landing.landed.tail, landing.tail_tokens)

    def take_loads(self, most: int, wanted: Collection[int], job: int) -> list[tuple[int, int]]:
        """What is to come back with the batch that was just scheduled: from slot to KV block.

        Args:
            most: Blocks in a piece.
            wanted: KV blocks that the batch has got: what is to come to one of them comes now, with all before it.
            job: Number of the copies that go with the batch.
        """
        loads: list[tuple[int, int]] = []
        for landing in self._held.values():
            count = max(0, most - len(loads))
            for number, (_, block) in enumerate(landing.unsent, 1):
                if block in wanted:
                    count = max(count, number)
            piece = [landing.unsent.popleft() for _ in range(min(count, len(landing.unsent)))]
            if piece:
                landing.job = job
                loads += piece
        self._counters.restored_blocks += len(loads)
        return loads

    def take_up(self, going: Collection[str], now_s: float) -> None:
        """A batch was scheduled: who is in it now holds its blocks itself, and others have waited for too long.

        Args:
            going: The requests in the batch. Their loads have been taken.
            now_s: Now.
        """
        for request_id, landing in [*self._held.items()]:
            if request_id in going:
                self._let_go(request_id)
            elif now_s >= landing.until_s:
                self._give_up(request_id)

    def release(self) -> bool:
        """Gives back what is held for requests that wait, for others need the room; False if there is nothing."""
        if not self._held:
            return False
        for request_id in [*self._held]:
            self._give_up(request_id)
        return True

    def forget(self, request_ids: Iterable[str]) -> None:
        """Requests have come to their end."""
        for request_id in request_ids:
            if request_id in self._held:
                self._give_up(request_id)

    def find_origins(self, blocks: Iterable[int]) -> set[int]:
        """The slots that KV blocks were last loaded from."""
        return {self._origins[block] for block in blocks if block in self._origins}

    @property
    def blocks(self) -> list[list[object]]:
        """KV blocks that are held, vLLM's, by request."""
        return [
            landing.landed.blocks + ([landing.landed.tail] if landing.tail_tokens else [])
            for landing in self._held.values()
        ]

    def _give_up(self, request_id: str) -> None:
        landing = self._held[request_id]
        loads = len(landing.landed.new) + (landing.tail_tokens > 0)
        self._counters.restored_in_vain += loads - len(landing.unsent)
        self._let_go(request_id)

    def _let_go(self, request_id: str) -> None:
        landing = self._held.pop(request_id)
        if landing.unsent:
            # The prefix cache must not find what will never come.
            uncache_blocks(self._scheduler, {block for _, block in landing.unsent})
        let_go(self._scheduler, landing.landed)
