"""What online requests compute in the next iteration, and what they need for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from conserve.policy.latency import IterationShape
from conserve.policy.token_budget import SMALLEST_CHUNK_TOKENS
from conserve.simulator.engine_state import EngineState
from conserve.simulator.harvest_limits import HarvestLimits
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Chunk


@dataclass(slots=True)
class OnlineDemand:
    """The demand of one iteration.

    Attributes:
        decodes: Requests that decode.
        chunks: Of prompts, those of arrivals included.
        arrivals: Waiting requests that it can take in if they get slots and blocks.
        tokens: That it computes.
        blocks: KV blocks that it takes; the whole sequence of an arrival has to fit.
        shape: What it computes.
        prompts: Those whose prompt is not computed to its end: request, and tokens left after this iteration.
        is_cut: Whether a prompt gets fewer tokens than it could use, so that nothing may come behind it.
        slots: Sequence slots that they take.
    """

    decodes: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    arrivals: list[SimRequest] = field(default_factory=list)
    tokens: int = 0
    blocks: int = 0
    shape: IterationShape = field(default_factory=IterationShape)
    prompts: list[tuple[SimRequest, int]] = field(default_factory=list)
    is_cut: bool = False
    slots: int = 0

    @property
    def is_present(self) -> bool:
        """Whether there is an online request."""
        return self.slots > 0


def measure_demand(state: EngineState, limits: HarvestLimits, now_s: float) -> OnlineDemand:
    """Adds up what the online requests need. Nobody is admitted by it.

    Args:
        state: Of the engine.
        limits: Say how much of the prompts is computed beside those who decode.
        now_s: Now.
    """
    decodes = state.online.size
    full_batch = state.limits.max_num_batched_tokens
    shape = state.decode_shape()
    demand = OnlineDemand(decodes, tokens=min(decodes, full_batch), shape=shape, slots=decodes)
    size = state.kv.block_size
    demand.blocks = -(-decodes // size)
    if not state.online_prompts and not state.waiting:
        return demand
    limit_ms = limits.limit_prompts_ms(shape, now_s)

    def add_prompt(request: SimRequest, context: int, wanted: int) -> int:
        tokens = 0 if demand.is_cut else min(wanted, full_batch - demand.tokens)
        if tokens > 0 and not math.isinf(limit_ms):
            least = min(tokens, SMALLEST_CHUNK_TOKENS)
            tokens = limits.model.fit_prefill_tokens(demand.shape, context, limit_ms, tokens)
            if tokens < least:  # The first one gets on, whatever the limit is.
                tokens = 0 if demand.shape.prefill_sequences else least
        if tokens > 0:
            demand.shape = demand.shape.add_prefill(tokens, context)
            demand.tokens += tokens
            demand.chunks.append(Chunk(request, tokens))
        demand.is_cut |= tokens < wanted
        demand.prompts.append((request, wanted - tokens))
        return tokens

    for request in state.online_prompts:
        tokens = add_prompt(request, request.computed, request.to_compute)
        demand.blocks += -(-tokens // size)
        demand.slots += 1
    for request in state.waiting:
        if demand.slots >= state.limits.max_num_seqs or demand.is_cut:
            break
        cached = state.kv.find_cached(request)
        wanted = request.total_tokens - cached
        if add_prompt(request, cached, wanted):
            demand.blocks += state.kv.blocks_for(state.kv.count_needed(request))
            demand.arrivals.append(request)
            demand.slots += 1
    return demand
