"""Preempts requests, so that others get their sequence slots and KV blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter

from conserve.engine.online_demand import count_growth
from conserve.engine.vllm_compat import (
    Request,
    Scheduler,
    can_free_blocks,
    count_freed_blocks,
    count_groups,
    count_held_blocks,
    preempt,
)
from conserve.policy.preemption import LAST_PROMPT_TOKENS, PLENTY_SHARE, Victim, choose_victims, count_lost_tokens


def preempt_cheapest(
    scheduler: Scheduler,
    candidates: Iterable[Request],
    slots_short: int,
    blocks_short: int,
    now_s: float,
    count_kept_tokens: Callable[[Request], int] = lambda request: 0,
    count_saved_blocks: Callable[[Request], int] = lambda request: 0,
) -> bool:
    """Preempts those of the candidates that lose least, as many as it takes.

    Args:
        scheduler: vLLM's.
        candidates: Running requests, the oldest first.
        slots_short: Slots needed besides those that are free.
        blocks_short: KV blocks needed besides those that are free.
        now_s: Now.
        count_kept_tokens: What a request loses besides its computed tokens.
        count_saved_blocks: Leading blocks of a request that are in host memory.

    Returns:
        False if it is none.
    """
    if slots_short <= 0 and blocks_short <= 0:
        return False
    by_id = {request.request_id: request for request in candidates}
    pool = scheduler.kv_cache_manager.block_pool
    stays_cached = blocks_short <= 0 and pool.get_num_free_blocks() >= PLENTY_SHARE * pool.num_gpu_blocks
    prompts = [request for request in by_id.values() if request.is_prefill_chunk]

    def count_further_tokens(request: Request) -> int:
        return count_kept_tokens(request) + (LAST_PROMPT_TOKENS if prompts == [request] else 0)

    victims = [
        _as_victim(scheduler, request, stays_cached, count_further_tokens(request), count_saved_blocks(request))
        for request in by_id.values()
    ]
    chosen = choose_victims(victims, max(0, slots_short), max(0, blocks_short))
    for request_id in chosen:
        preempt(scheduler, by_id[request_id], now_s)
    return bool(chosen)


def _as_victim(
    scheduler: Scheduler, request: Request, stays_cached: bool, further_tokens: int, saved_blocks: int
) -> Victim:
    freed = count_freed_blocks(scheduler, request)
    shared = count_held_blocks(scheduler, request) - freed // count_groups(scheduler)
    kept = max(shared, saved_blocks)
    lost = count_lost_tokens(request.num_computed_tokens, kept, scheduler.block_size, stays_cached=stays_cached)
    # The blocks of a batch in flight may become free later only, the slot at once.
    return Victim(request.request_id, freed if can_free_blocks(scheduler, request) else 0, lost + further_tokens)


def preempt_beforehand(scheduler: Scheduler, now_s: float, release: Callable[[], bool] | None = None) -> bool:
    """Preempts those whom vLLM would preempt within this step for want of KV blocks; False if it is nobody.

    Args:
        scheduler: vLLM's, set up for the step.
        now_s: Now.
        release: Gives back blocks that are held for those who wait; False if there are none.

    vLLM 0.32 takes blocks for computed as soon as it has allocated them. Those of a request that it preempts later
    in the same step stay in the prefix cache, and the next request with this prefix is served garbage.
    """
    pool = scheduler.kv_cache_manager.block_pool
    # So many are enough whoever runs: in most steps that is all there is to do.
    growth = len(scheduler.running) + scheduler.max_num_scheduled_tokens // scheduler.block_size
    if growth * count_groups(scheduler) <= pool.get_num_free_blocks() and not scheduler.num_lookahead_tokens:
        return False
    preempted = False
    while count_growth(scheduler, scheduler.running, scheduler.max_num_scheduled_tokens) > pool.get_num_free_blocks():
        if release is not None and release():
            continue
        victim = max(scheduler.running, key=attrgetter("priority", "arrival_time"))
        if not can_free_blocks(scheduler, victim):
            break
        preempt(scheduler, victim, now_s)
        preempted = True
    return preempted
