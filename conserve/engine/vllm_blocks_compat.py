"""What checkpoints do with the privates of vLLM's KV cache manager. As `vllm_compat`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Final, NamedTuple

from conserve.engine.kv_memory import explain_kind
from conserve.engine.vllm_compat import Request, Scheduler, SchedulerOutput

BLOCKS_RELIED_ON: Final = {
    "kv_cache_manager": ("get_computed_blocks", "create_kv_cache_blocks", "block_pool", "coordinator"),
    "block_pool": (
        *("touch", "get_new_blocks", "free_blocks", "cache_full_blocks", "hash_block_size", "enable_caching"),
        "free_block_queue",
    ),
    "block_manager": ("kv_cache_group_id", "block_size", "req_to_blocks"),
    "request": ("block_hashes", "num_computed_tokens", "skip_reading_prefix_cache"),
}
"""Attributes of vLLM's objects that checkpoints use, by object."""


class BlocksTaken(NamedTuple):
    """KV blocks that requests have got with a batch.

    Attributes:
        found: In the prefix cache.
        new: Which the batch writes to.
        copied: From one that holds a part of what a new one is to hold: copied to that, before the batch is computed.
    """

    found: list[int]
    new: list[int]
    copied: dict[int, int]


class Landed(NamedTuple):
    """KV blocks that are held for a waiting request.

    Attributes:
        blocks: All of them, vLLM's, in the order of its tokens.
        new: Ids of those that are empty yet: the last ones.
        tail: The block behind them, vLLM's, which is not full; None without.
    """

    blocks: list[Any]
    new: list[int]
    tail: Any | None = None


def explain_uncopyable(scheduler: Scheduler) -> str | None:
    """Why blocks of this engine cannot be copied; None if they can."""
    pool = scheduler.kv_cache_manager.block_pool
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    if not pool.enable_caching:
        return "enable_prefix_caching is off: blocks are known by the hashes of the prefix cache"
    if (reason := explain_kind(scheduler.kv_cache_config)) is not None:
        return reason
    if pool.hash_block_size != managers[0].block_size:
        return "blocks have several hashes each"
    return None


def is_restorable(request: Request) -> bool:
    """Whether a request ever looks into the prefix cache: one that wants logprobs of its prompt does not."""
    return not request.skip_reading_prefix_cache


def finds_cached(request: Request) -> bool:
    """Whether a waiting request will look into the prefix cache."""
    return request.num_computed_tokens == 0 and is_restorable(request)


def list_hashes(request: Request, blocks: int) -> Sequence[Hashable]:
    """The hashes of the first blocks of a request, as many as are full, at most `blocks`."""
    hashes: Sequence[Hashable] = request.block_hashes[:blocks]
    return hashes


def list_block_ids_between(scheduler: Scheduler, request: Request, start: int, end: int) -> list[int]:
    """KV blocks of a running request, from the one numbered `start` to before `end`."""
    (manager,) = scheduler.kv_cache_manager.coordinator.single_type_managers
    return [block.block_id for block in manager.req_to_blocks[request.request_id][start:end]]


def land(scheduler: Scheduler, request: Request, blocks: int, *, has_tail: bool = False) -> Landed:
    """Gets blocks for the first tokens of a waiting request and has the prefix cache find them.

    They belong to nobody until the request takes them up; `let_go` gives them back.

    Args:
        scheduler: vLLM's, with as many free blocks.
        request: The request.
        blocks: How many, those included that are in the prefix cache.
        has_tail: Whether there is another one, not full, which the prefix cache does not find.
    """
    manager = scheduler.kv_cache_manager
    (group,) = manager.coordinator.single_type_managers
    cached = [*manager.get_computed_blocks(request)[0].blocks[0]]
    manager.block_pool.touch(cached)
    new = manager.block_pool.get_new_blocks(max(0, blocks - len(cached)))
    held = [*cached, *new]
    manager.block_pool.cache_full_blocks(
        request=request,
        blocks=held,
        num_cached_blocks=len(cached),
        num_full_blocks=len(held),
        block_size=group.block_size,
        kv_cache_group_id=group.kv_cache_group_id,
    )
    tail = manager.block_pool.get_new_blocks(1)[0] if has_tail else None
    return Landed(held, [block.block_id for block in new], tail)


def let_go(scheduler: Scheduler, landed: Landed) -> None:
    """Gives blocks back: they are free, unless a request has taken them up, and in the prefix cache until reused."""
    tail = [landed.tail] if landed.tail is not None else []
    scheduler.kv_cache_manager.block_pool.free_blocks([*tail, *reversed(landed.blocks)])


def add_tail(scheduler: Scheduler, hit: Any, tail: Any, tokens: int) -> Any:
    """What vLLM has found in the prefix cache for a request, and a block behind it that is not full.

    As where vLLM finds a part of a block itself, the request gets a copy of that block.

    Args:
        scheduler: vLLM's.
        hit: Of its `_get_local_prefix_cache_hit`, without a part of a block.
        tail: The block, vLLM's.
        tokens: Of the request that it holds.
    """
    found, found_tokens, *rest = hit
    blocks = scheduler.kv_cache_manager.create_kv_cache_blocks(([*found.blocks[0], tail],))
    return blocks, found_tokens + tokens, *rest


def find_block(scheduler: Scheduler, request: Request, number: int) -> Any:
    """The block of a running request with that number, vLLM's."""
    (manager,) = scheduler.kv_cache_manager.coordinator.single_type_managers
    return manager.req_to_blocks[request.request_id][number]


def reuse_last(scheduler: Scheduler, block: Any) -> None:
    """If a block is free, every other one is used before it.

    vLLM uses blocks first that the prefix cache does not know.
    """
    free = scheduler.kv_cache_manager.block_pool.free_block_queue
    if block.ref_cnt == 0:
        free.remove(block)
        free.append(block)


def list_admitted(output: SchedulerOutput) -> list[str]:
    """Requests that begin, or go on after a preemption, with this batch."""
    return [*(new.req_id for new in output.scheduled_new_reqs), *output.scheduled_cached_reqs.resumed_req_ids]


def list_blocks_taken(output: SchedulerOutput, block_size: int) -> BlocksTaken:
    """KV blocks that requests have got with this batch."""
    copied = {copy.src_block_id: copy.dst_block_id for copy in output.kv_cache_block_copies or ()}
    taken = BlocksTaken([*copied], [], copied)

    def sort(blocks: Sequence[int], computed_tokens: int) -> None:
        # The prefix cache has whole blocks only.
        found = computed_tokens // block_size
        taken.found.extend(blocks[:found])
        taken.new.extend(blocks[found:])

    for new in output.scheduled_new_reqs:
        sort(new.block_ids[0], new.num_computed_tokens)
    cached = output.scheduled_cached_reqs
    for request_id, groups, computed in zip(
        cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
    ):
        if groups:
            sort(groups[0], computed if request_id in cached.resumed_req_ids else 0)
    return taken
