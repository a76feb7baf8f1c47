"""Which offline requests run beside the online ones in an iteration, and with how many tokens."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from conserve.policy.latency import IterationShape
from conserve.policy.token_budget import SMALLEST_CHUNK_TOKENS, size_offline_pass
from conserve.simulator.engine_state import EngineState
from conserve.simulator.host_copies import HostCopies
from conserve.simulator.online_demand import OnlineDemand
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Chunk


class Room(NamedTuple):
    """KV blocks for offline requests: free after the online demand, and what new and running ones leave of them."""

    free_blocks: int
    kept_by_new: int
    kept_by_running: int


@dataclass(slots=True)
class Filling:
    """The share of offline work in one iteration.

    Attributes:
        shape: Of the whole iteration.
        chunks: Of offline prompts.
        decodes: Offline requests that decode.
        held_decodes: Those that do not for now.
        tokens: Of offline requests.
        blocks_short: KV blocks that running requests miss.
    """

    shape: IterationShape
    chunks: list[Chunk] = field(default_factory=list)
    decodes: int = 0
    held_decodes: Sequence[SimRequest] = ()
    tokens: int = 0
    blocks_short: int = 0


def fill(
    state: EngineState,
    demand: OnlineDemand,
    limit_ms: float,
    largest: int,
    room: Room,
    held: Collection[SimRequest],
    copies: HostCopies | None,
    now_s: float,
    *,
    decodes_only: bool = False,
    prompts_only: bool = False,
) -> Filling:
    """Fills an iteration with offline tokens, in the order of the engine's `offline_share`.

    Args:
        state: Of the engine; requests are admitted there.
        demand: What online requests compute.
        limit_ms: The longest predicted time of the iteration.
        largest: Tokens of the iteration, at most.
        room: KV blocks.
        held: Prompts that must stay as they are.
        copies: Blocks in host memory; None for none.
        now_s: Now.
        decodes_only: Prompts have to wait.
        prompts_only: Decodes have to wait.
    """
    filling = Filling(demand.shape)
    left = 0 if demand.is_cut else largest - demand.tokens
    free = room.free_blocks
    if state.offline.size and not prompts_only:
        left, free = _add_decodes(state, demand, filling, limit_ms, left, free, room.kept_by_running)
    smallest = SMALLEST_CHUNK_TOKENS
    if not demand.is_present:
        pass_tokens = size_offline_pass(state.model, filling.shape, limit_ms, left)
        if not filling.tokens:
            pass_tokens = max(pass_tokens, SMALLEST_CHUNK_TOKENS)
            smallest = min(SMALLEST_CHUNK_TOKENS, left)
        left = min(left, pass_tokens)
        limit_ms = math.inf
    nobody_waits = not state.offline_prompts and not len(state.backlog) and (copies is None or not copies.is_landing)
    if decodes_only or nobody_waits:
        return filling

    def fit(context: int, most: int) -> int:
        most = min(most, left)
        if most <= 0 or math.isinf(limit_ms):
            return max(0, most)
        return state.model.fit_prefill_tokens(filling.shape, context, limit_ms, most)

    def take(request: SimRequest, tokens: int) -> None:
        nonlocal left
        filling.shape = filling.shape.add_prefill(tokens, request.computed)
        filling.chunks.append(Chunk(request, tokens))
        filling.tokens += tokens
        left -= tokens

    leaves_begun = is_cut = False
    longest = max(chunk.tokens for chunk in demand.chunks) if demand.arrivals else 0
    kept_by_running = room.kept_by_running
    # Only where it matters: finding it takes longer than all else here.
    oldest = state.find_oldest_offline() if kept_by_running and free < 2 * kept_by_running + 64 else None
    for request in state.offline_prompts:
        if request in held:
            continue
        wanted = request.to_compute
        tokens = fit(request.computed, wanted)
        if tokens < min(smallest, wanted):
            leaves_begun = True
            continue
        if demand.arrivals and tokens < wanted:
            # vLLM serves it before the arrivals, and cuts all prompts at one length.
            if is_cut or tokens < longest:
                leaves_begun = True
                continue
            is_cut = True
        blocks = state.kv.blocks_for(tokens)
        kept = 0 if request is oldest else kept_by_running
        if blocks > max(0, free - kept):
            filling.blocks_short += blocks - max(0, free - kept)
            continue
        free -= blocks
        take(request, tokens)
    if leaves_begun or filling.blocks_short or left <= 0:
        return filling
    running = state.running
    slots = state.limits.max_num_seqs - running
    headroom = room.kept_by_new + filling.decodes + len(filling.chunks) if running - demand.slots > 0 else 0
    if copies is not None and slots > 0:
        kept_free = demand.blocks + headroom + running // state.kv.block_size + 1
        before = len(state.offline_prompts)
        if copies.bring_back(now_s, kept_free):
            return filling
        for request in state.offline_prompts[before:]:
            if (tokens := fit(request.computed, request.to_compute)) > 0:
                take(request, tokens)
                slots -= 1
                free -= state.kv.blocks_for(request.total_tokens)
    if demand.arrivals:
        slots = min(slots, 1)
    while slots > 0 and left > 0 and len(state.backlog):
        request = state.backlog.peek_next()
        cached = state.kv.find_cached(request)
        wanted = request.total_tokens - cached
        blocks = state.kv.blocks_for(state.kv.count_needed(request))
        if blocks + headroom > free:
            break
        tokens = fit(cached, wanted)
        if tokens < min(smallest, wanted):
            break
        state.backlog.pop_next()
        state.admit(request, cached)
        if request.preemptions:
            state.metrics.recomputed_tokens += max(0, request.best_prompt - cached)
        take(request, tokens)
        slots -= 1
        free -= blocks
    return filling


def _add_decodes(
    state: EngineState, demand: OnlineDemand, filling: Filling, limit_ms: float, left: int, free: int, kept: int
) -> tuple[int, int]:
    group = state.offline
    count = group.size
    shape = filling.shape.add_decodes(count, group.context)
    in_time = not demand.is_present or state.model.predict_ms(shape) <= limit_ms
    if in_time and count <= left and count <= free - kept:
        filling.shape, filling.decodes, filling.tokens = shape, count, count
        return left - count, free - -(-count // state.kv.block_size)
    most = min(count, max(0, left))
    if not in_time and state.model.predict_ms(filling.shape.add_decodes(1, 0)) > limit_ms:
        most = 0
    if most == 0:
        filling.held_decodes = [*group]
        return left, free
    ordered = sorted(group, key=attrgetter("number"))
    contexts = [0, *accumulate(group.computed_of(request) for request in ordered)]
    if not in_time:
        most = bisect_right(
            range(1, most + 1),
            limit_ms,
            key=lambda number: state.model.predict_ms(filling.shape.add_decodes(number, contexts[number])),
        )
    # Only who is at the end of a block needs another one; the oldest one may use what is kept free.
    oldest = state.find_oldest_offline()
    going, held, context = 0, ordered[most:], 0
    for request in ordered[:most]:
        computed = group.computed_of(request)
        if computed % state.kv.block_size == 0:
            if free <= (0 if request is oldest else kept):
                filling.blocks_short += 1
                held.append(request)
                continue
            free -= 1
        going += 1
        context += computed
    filling.shape = filling.shape.add_decodes(going, context)
    filling.decodes = filling.tokens = going
    filling.held_decodes = held
    return left - going, free
