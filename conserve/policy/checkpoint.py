"""Which KV blocks of offline requests to copy to host memory, how fast, and which copies to give up.

ConServe (arXiv 2410.01228) section 4.4 copies blocks as they fill, so that a preempted request has lost nothing when
its blocks are taken. Here that is done for as much as is likely to be taken soon, those first who give way first: while
KV memory is plentiful nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

HORIZON_S = 5.0
"""What preemptions take within this time is to be in host memory."""
HALF_LIFE_S = 20.0
"""A preemption counts half after this time."""
MARGIN = 1.5
"""As much more than expected is copied."""
ONLINE_SHARE = 0.5
"""Beside online requests copies take this part of the time that they may take otherwise."""


class Coverage(NamedTuple):
    """A running offline request.

    Attributes:
        request_id: Its id.
        freed_blocks: KV blocks that its preemption makes free.
        full_blocks: Leading blocks of it that are full and computed.
        saved_blocks: Leading blocks of it that are in host memory.
    """

    request_id: str
    freed_blocks: int
    full_blocks: int
    saved_blocks: int

    @property
    def unsaved_blocks(self) -> int:
        """Full blocks that are not in host memory."""
        return max(0, self.full_blocks - self.saved_blocks)


class Save(NamedTuple):
    """Blocks to copy: `blocks` more of a request, after those that are saved."""

    request_id: str
    blocks: int


@dataclass
class LossRate:
    """KV blocks that preemptions have taken from offline requests, each second of the latest ones.

    Attributes:
        per_s: At `seen_s`.
        seen_s: When it was last brought up to date.
    """

    per_s: float = 0.0
    seen_s: float = -math.inf

    def observe(self, now_s: float, blocks: int) -> None:
        """Takes note of a preemption that has made so many blocks free."""
        self.per_s = self.at(now_s) + blocks * math.log(2.0) / HALF_LIFE_S
        self.seen_s = now_s

    def at(self, now_s: float) -> float:
        """Blocks a second, now."""
        return float(self.per_s * 0.5 ** ((now_s - self.seen_s) / HALF_LIFE_S)) if self.per_s else 0.0


def count_blocks_at_risk(free_blocks: int, burst_blocks: int, wanted_blocks: int, lost_blocks_per_s: float) -> int:
    """KV blocks that offline requests will probably have to give up within `HORIZON_S`.

    Args:
        free_blocks: That nobody uses.
        burst_blocks: The largest burst of online requests to expect.
        wanted_blocks: What running requests will take for their next tokens, and the next of those that wait.
        lost_blocks_per_s: What preemptions have taken lately.
    """
    short = max(0, burst_blocks + wanted_blocks - free_blocks)
    # Rounded down: a loss of long ago that has faded to a part of a block is none.
    return int(MARGIN * max(short, lost_blocks_per_s * HORIZON_S))


def limit_blocks(passed_s: float, share: float, block_s: float, *, has_online: bool) -> float:
    """Blocks that may be copied for the time that has passed.

    Args:
        passed_s: Since blocks were last chosen.
        share: Part of the time that copies may take.
        block_s: Time to copy one.
        has_online: Whether online requests are computed beside them.
    """
    return passed_s * share * (ONLINE_SHARE if has_online else 1.0) / max(block_s, 1e-9)


def choose_saves(victims: Iterable[Coverage], at_risk_blocks: int, most_blocks: int) -> list[Save]:
    """The blocks to copy next.

    Args:
        victims: Running offline requests, who gives way first coming first. No more of them are looked at than needed.
        at_risk_blocks: Blocks that they will probably have to give up, all together.
        most_blocks: To copy now.
    """
    saves = []
    for victim in victims:
        if at_risk_blocks <= 0 or most_blocks <= 0:
            break
        at_risk_blocks -= victim.freed_blocks
        blocks = min(victim.unsaved_blocks, most_blocks)
        if blocks > 0:
            saves.append(Save(victim.request_id, blocks))
            most_blocks -= blocks
    return saves


def list_drops(last_first: Iterable[Coverage], saved_for: str) -> Iterator[Coverage]:
    """Whose copies to give up, one after the other, so that blocks of a request find room in host memory.

    Only of requests that give way later than this one: those who have given way need theirs, and who is next is more
    likely to need them than who is not.

    Args:
        last_first: Running offline requests, who gives way last coming first.
        saved_for: One of them.
    """
    for victim in last_first:
        if victim.request_id == saved_for:
            return
        if victim.saved_blocks > 0:
            yield victim


def count_restorable(saved_blocks: int, cached_blocks: int, tokens: int, block_size: int) -> int:
    """Leading blocks of a preempted request to have in KV memory before it goes on, those that are there included.

    Args:
        saved_blocks: Leading blocks in host memory.
        cached_blocks: Leading blocks still in KV memory.
        tokens: Of the request. One of them is always computed, to get the next.
        block_size: Tokens of a block.
    """
    return max(cached_blocks, min(saved_blocks, (tokens - 1) // block_size))


def count_tail_tokens(saved_tokens: int, blocks: int, tokens: int, block_size: int) -> int:
    """Tokens of a preempted request that come back with its block that is not full.

    Args:
        saved_tokens: That the block holds.
        blocks: Full blocks before it, all of which are there.
        tokens: Of the request. One of them is always computed, to get the next.
        block_size: Tokens of a block.
    """
    return max(0, min(saved_tokens, tokens - 1 - blocks * block_size))
