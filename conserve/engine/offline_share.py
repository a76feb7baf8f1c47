"""Which offline requests run beside the online ones in an iteration, and with how many tokens."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from conserve.engine.online_demand import (
    OnlineDemand,
    blocks_to_grow,
    count_decodes,
    count_growth,
    count_slots,
    tokens_wanted,
)
from conserve.engine.vllm_compat import Request, Scheduler, can_limit_chunks, count_groups, look_up_admission
from conserve.policy.latency import IterationShape, LatencyModel
from conserve.policy.token_budget import SMALLEST_CHUNK_TOKENS, size_offline_pass


class KeptFree(NamedTuple):
    """KV blocks that offline requests leave free: new ones that many, those that run this many."""

    by_new: int
    by_running: int


class Room(NamedTuple):
    """KV blocks for offline requests: free after the online demand, and what of them is to stay free."""

    free_blocks: int
    kept_free: KeptFree


@dataclass
class OfflineShare:
    """The share of offline work in one iteration.

    Attributes:
        admitted: Running offline requests that run.
        held: Running offline requests that keep slot and blocks, but do not run.
        tokens: Tokens they may compute, new ones included.
        longest_chunk_tokens: No prompt may compute more in this iteration, online ones included; 0 for any number.
        offer: Waiting offline requests that may be taken in.
        holding_offer: Likewise of those that have KV blocks already, from a connector.
        blocks_kept_free: KV blocks that taking in leaves free.
        headroom_blocks: KV blocks that are to stay free beside the next one that is taken in.
        wanting: Running requests in order, if some of them are held back for want of blocks only.
        blocks_short: KV blocks that those miss.
    """

    admitted: list[Request] = field(default_factory=list)
    held: list[Request] = field(default_factory=list)
    tokens: int = 0
    longest_chunk_tokens: int = 0
    offer: int = 0
    holding_offer: int = 0
    blocks_kept_free: int = 0
    headroom_blocks: int = 0
    wanting: list[Request] = field(default_factory=list)
    blocks_short: int = 0


def share_out(
    scheduler: Scheduler,
    offline: Sequence[Request],
    demand: OnlineDemand,
    model: LatencyModel,
    limit_ms: float,
    full_batch: int,
    room: Room,
    kept_back: Sequence[Request] = (),
    decodes_only: bool = False,
) -> OfflineShare:
    """Fills an iteration with offline tokens.

    Args:
        scheduler: vLLM's, with the offline requests that wait.
        offline: Running offline requests, oldest first.
        demand: What the online requests compute.
        model: The latency model.
        limit_ms: The longest predicted time of the iteration.
        full_batch: Tokens of the iteration, at most.
        room: KV blocks for offline requests.
        kept_back: Further running requests, which do not run now.
        decodes_only: Whether prompts have to wait.
    """
    filling = _Filling(scheduler, offline, demand, model, limit_ms, full_batch, room)
    share = filling.fill(offline, len(kept_back), decodes_only)
    share.held += kept_back
    return share


class _Filling:
    def __init__(
        self,
        scheduler: Scheduler,
        offline: Sequence[Request],
        demand: OnlineDemand,
        model: LatencyModel,
        limit_ms: float,
        full_batch: int,
        room: Room,
    ) -> None:
        self._scheduler = scheduler
        self._demand = demand
        self._model = model
        self._limit_ms = limit_ms
        # What is left of a prompt that was cut short would take the tokens of those behind it.
        self._room_tokens = 0 if demand.is_cut else full_batch - demand.tokens
        self._shape: IterationShape = demand.shape
        self._share = OfflineShare()
        self._smallest_chunk = SMALLEST_CHUNK_TOKENS
        self._leaves_begun = False
        self._longest_prompt_tokens = demand.longest_prompt_tokens
        self._may_cut = can_limit_chunks(scheduler)
        # The oldest one may use the reserve, so that it gets to its end whatever the reserve is.
        self._oldest = offline[0] if offline else None
        self._free_blocks = room.free_blocks
        self._kept_free = room.kept_free
        # So many blocks are enough for whatever the batch can hold: no need to count.
        worst = (len(offline) + self._room_tokens // scheduler.block_size + 1) * count_groups(scheduler)
        self._counts_blocks = 2 * worst > room.free_blocks - room.kept_free.by_running

    def fill(self, offline: Sequence[Request], kept_back: int, decodes_only: bool) -> OfflineShare:
        prompts = [request for request in offline if request.is_prefill_chunk]
        self._add_decodes([request for request in offline if not request.is_prefill_chunk] if prompts else offline)
        if not self._demand.is_present:
            pass_tokens = size_offline_pass(self._model, self._shape, self._limit_ms, self._room_tokens)
            if not self._share.tokens:
                # Whatever the objectives are, an iteration computes something.
                pass_tokens = max(pass_tokens, SMALLEST_CHUNK_TOKENS)
                self._smallest_chunk = min(SMALLEST_CHUNK_TOKENS, self._room_tokens)
            self._room_tokens = min(self._room_tokens, pass_tokens)
            self._limit_ms = math.inf
        if decodes_only:
            self._share.held += prompts
        else:
            self._add_prefills(prompts)
            self._add_new(len(offline) + kept_back)
        if self._share.blocks_short:
            self._share.wanting = list(offline)
        return self._share

    def _add_decodes(self, decodes: Sequence[Request]) -> None:
        counted = count_decodes(self._scheduler, decodes)
        shape = self._shape.add_decodes(counted.sequences, counted.context)
        in_time = not self._demand.is_present or self._model.predict_ms(shape) <= self._limit_ms
        blocks = count_growth(self._scheduler, decodes) if self._counts_blocks else 0
        if (
            in_time
            and counted.tokens <= self._room_tokens
            and blocks <= max(0, self._free_blocks - self._kept_free.by_running)
        ):
            self._share.admitted += decodes
            self._shape = shape
            self._free_blocks -= blocks
            self._take_tokens(counted.tokens)
            return
        most = len(decodes) if in_time else self._count_in_time(decodes)
        for request in decodes[:most]:
            wanted = tokens_wanted(self._scheduler, request)
            if wanted > self._room_tokens:
                self._share.held.append(request)
            elif self._take_blocks(request, wanted):
                self._shape = self._shape.add_decodes(1, request.num_computed_tokens)
                self._take_tokens(wanted)
        self._share.held += decodes[most:]

    def _count_in_time(self, decodes: Sequence[Request]) -> int:
        """How many of the decodes, in their order, keep the iteration within its limit."""
        contexts = [0, *accumulate(request.num_computed_tokens for request in decodes)]
        return bisect_right(
            range(1, len(decodes) + 1),
            self._limit_ms,
            key=lambda count: self._model.predict_ms(self._shape.add_decodes(count, contexts[count])),
        )

    def _add_prefills(self, prefills: Sequence[Request]) -> None:
        for request in prefills:
            wanted = tokens_wanted(self._scheduler, request)
            tokens = self._fit(request.num_computed_tokens, wanted)
            if wanted and (tokens < min(self._smallest_chunk, wanted) or not self._is_frugal(tokens, wanted)):
                self._share.held.append(request)
                self._leaves_begun = True
            elif self._take_blocks(request, tokens):
                self._shape = self._shape.add_prefill(tokens, request.num_computed_tokens)
                self._take_tokens(tokens)
                self._longest_prompt_tokens = max(self._longest_prompt_tokens, tokens)
                if tokens < wanted and self._demand.arrivals:
                    self._share.longest_chunk_tokens = tokens

    def _is_frugal(self, tokens: int, wanted: int) -> bool:
        """Whether a prompt leaves arrivals what they are to compute, although vLLM serves those that run before them.

        One that could use more than its share has to be cut, and vLLM cuts all prompts at the same length.
        """
        if not self._demand.arrivals:
            return True
        longest = self._share.longest_chunk_tokens
        if tokens == wanted:
            return not longest or wanted <= longest
        return not longest and self._may_cut and tokens >= self._longest_prompt_tokens

    def _add_new(self, running: int) -> None:
        backlog = self._scheduler.waiting.backlog
        holding = self._scheduler.kv_holding_waiting.backlog
        # Arrivals do not fit although all that could have made way, so they take no slots either.
        is_stuck = self._free_blocks < 0 or self._demand.is_passed_over
        online = len(self._demand.running) if is_stuck else self._demand.slots
        slots = count_slots(self._scheduler) - online - running
        if slots <= 0:
            return
        if holding and (is_stuck or not self._demand.arrivals):
            # They come before all others, and others may be waiting for their blocks.
            self._share.holding_offer = len(holding)
            for request in holding:
                context = request.num_computed_tokens
                if tokens := self._fit(context, request.num_tokens - context):
                    self._shape = self._shape.add_prefill(tokens, context)
                    self._take_tokens(tokens)
        if self._share.blocks_short or not backlog or self._room_tokens <= 0:
            return
        if self._leaves_begun:
            return
        if self._demand.arrivals and holding:
            return  # They would come before the arrivals.
        request = backlog.peek_next()
        admission = look_up_admission(self._scheduler, request)
        # Where none runs, one may use the reserve, so that offline work goes on whatever the reserve is.
        headroom = self._kept_free.by_new + len(self._share.admitted) if running else 0
        self._share.headroom_blocks = headroom
        most = min(len(backlog), slots)
        if self._demand.arrivals:
            # The arrivals must not be held up by what is to stay free, so it is checked here, for one request.
            fits = self._scheduler.connector is None and admission.blocks + headroom <= self._free_blocks
            most = 1 if fits else 0
        else:
            self._share.blocks_kept_free = headroom
        self._offer(most, request.num_tokens - admission.cached_tokens, admission.cached_tokens)

    def _offer(self, most: int, wanted: int, context: int) -> None:
        """Makes room for new prompts, as if all of them were like the next one."""
        if math.isinf(self._limit_ms) and most > 1:
            self._share.offer = most
            self._take_tokens(self._room_tokens)
            return
        while self._share.offer < most:
            tokens = self._fit(context, wanted)
            if tokens < min(self._smallest_chunk, wanted):
                return
            self._share.offer += 1
            self._shape = self._shape.add_prefill(tokens, context)
            self._take_tokens(tokens)

    def _fit(self, context: int, most: int) -> int:
        most = min(most, self._room_tokens)
        if most <= 0:
            return 0
        if math.isinf(self._limit_ms):
            return most
        return self._model.fit_prefill_tokens(self._shape, context, self._limit_ms, most)

    def _take_tokens(self, tokens: int) -> None:
        self._room_tokens -= tokens
        self._share.tokens += tokens

    def _take_blocks(self, request: Request, tokens: int) -> bool:
        if not self._counts_blocks:
            self._share.admitted.append(request)
            return True
        blocks = blocks_to_grow(self._scheduler, request, tokens)
        kept = 0 if request is self._oldest else self._kept_free.by_running
        if blocks > max(0, self._free_blocks - kept):
            self._share.blocks_short += blocks - max(0, self._free_blocks - kept)
            self._share.held.append(request)
            return False
        self._free_blocks -= blocks
        self._share.admitted.append(request)
        return True
