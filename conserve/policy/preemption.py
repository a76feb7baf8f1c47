"""Which offline requests give up sequence slots and KV blocks, so that the least work is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PLENTY_SHARE = 0.25
"""With this share of the KV blocks free, what a request gives up stays in the prefix cache until it goes on: the free
blocks are used up oldest first."""


LAST_PROMPT_TOKENS = 512
"""What it costs to preempt the only prompt under way, besides its own work: until one of those that decode has come to
its end, the iterations have room that nobody fills."""


@dataclass(frozen=True)
class Victim:
    """A running offline request that may be preempted.

    Attributes:
        request_id: Its id.
        blocks_freed: KV blocks that its preemption makes free: those that no other request uses.
        lost_tokens: Tokens to compute again when it resumes.
    """

    request_id: str
    blocks_freed: int
    lost_tokens: int


def count_lost_tokens(computed_tokens: int, kept_blocks: int, block_size: int, *, stays_cached: bool) -> int:
    """Tokens that a request has to compute again when it is preempted.

    Args:
        computed_tokens: Those it has computed.
        kept_blocks: Its leading KV blocks that others use, too, so that they stay in the prefix cache, or that are in
            host memory.
        block_size: Tokens of a KV block.
        stays_cached: Whether all of its full blocks stay there: with plenty of free blocks (`PLENTY_SHARE`), and if it
            does not give way for blocks.
    """
    kept_blocks = computed_tokens // block_size if stays_cached else kept_blocks
    return max(0, computed_tokens - kept_blocks * block_size)


def choose_victims(candidates: Sequence[Victim], slots_short: int, blocks_short: int) -> list[str]:
    """The requests to preempt so that `slots_short` slots and `blocks_short` KV blocks become free.

    None of them could be spared. If all candidates together do not suffice, those that help to come closest: all that
    have what is short. The loss is the least possible where only slots are short, at most twice that where only blocks
    are, at most three times where both are.

    Args:
        candidates: Who may be preempted, the oldest first: among equals the youngest goes.
        slots_short: Sequence slots needed besides those that are free.
        blocks_short: KV blocks needed besides those that are free.

    Returns:
        Their ids, the one with the fewest lost tokens first.
    """
    if slots_short <= 0 and blocks_short <= 0:
        return []
    blocks_short = min(blocks_short, sum(victim.blocks_freed for victim in candidates))

    youngest_first = list(reversed(candidates))
    by_loss = sorted(youngest_first, key=lambda victim: victim.lost_tokens)
    chosen = {victim.request_id for victim in _cover_blocks(youngest_first, blocks_short)}
    for victim in by_loss:
        if len(chosen) >= slots_short:
            break
        chosen.add(victim.request_id)

    # What was taken for slots, or late for blocks, may have made others superfluous.
    spare_slots = len(chosen) - slots_short
    spare_blocks = sum(victim.blocks_freed for victim in by_loss if victim.request_id in chosen) - blocks_short
    for victim in reversed(by_loss):
        if victim.request_id in chosen and spare_slots >= 1 and spare_blocks >= victim.blocks_freed:
            chosen.remove(victim.request_id)
            spare_slots -= 1
            spare_blocks -= victim.blocks_freed
    return [victim.request_id for victim in by_loss if victim.request_id in chosen]


def _cover_blocks(candidates: Sequence[Victim], blocks_short: int) -> list[Victim]:
    """Requests that free `blocks_short` KV blocks together, which all candidates do, for at most twice the least loss.

    The greedy rule for covering (Csirik, Frenk, Labbé and Zhang, 1991): take what costs least for a block, but leave
    out and remember each one that would be enough to complete the set; the cheapest of these complete sets it is.
    Without that a request with little too few blocks would make the greedy rule take a large one after it.
    """
    if blocks_short <= 0:
        return []
    taken: list[Victim] = []
    taken_loss = taken_blocks = 0
    best: list[Victim] = []
    best_loss: int | None = None
    useful = [victim for victim in candidates if victim.blocks_freed > 0]
    for victim in sorted(useful, key=lambda victim: victim.lost_tokens / victim.blocks_freed):
        if taken_blocks + victim.blocks_freed < blocks_short:
            taken.append(victim)
            taken_loss += victim.lost_tokens
            taken_blocks += victim.blocks_freed
        elif best_loss is None or taken_loss + victim.lost_tokens < best_loss:
            best = [*taken, victim]
            best_loss = taken_loss + victim.lost_tokens
    return best
