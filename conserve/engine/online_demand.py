"""What online requests need in one iteration: tokens, sequence slots, KV blocks, time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

from conserve.engine.deadlines import Deadlines
from conserve.engine.vllm_compat import (
    Request,
    Scheduler,
    count_groups,
    count_held_blocks,
    look_up_admission,
    unblock,
)
from conserve.policy.latency import IterationShape
from conserve.policy.token_budget import SMALLEST_CHUNK_TOKENS

MOST_COUNTED = 64
"""Waiting requests whose prompts are counted: behind so many, the objective to the first token is lost in any case."""


def tokens_wanted(scheduler: Scheduler, request: Request) -> int:
    """Tokens that a running request could compute now: 1 when it decodes, the rest of its prompt before.

    With asynchronous scheduling 0 when the batches in flight bring it to its end; as vLLM's scheduler counts.
    """
    placeholders = request.num_output_placeholders
    computed = request.num_computed_tokens
    if placeholders > 0 and computed + 2 - placeholders >= request.num_prompt_tokens + request.max_tokens:
        return 0
    wanted = request.num_tokens_with_spec + placeholders - computed
    threshold = scheduler.scheduler_config.long_prefill_token_threshold
    if 0 < threshold < wanted:
        wanted = threshold
    return int(max(0, min(wanted, scheduler.max_model_len - computed - scheduler.num_sampled_tokens_per_step)))


def is_decoding(request: Request) -> bool:
    """Whether a running request has nothing left to compute but its next token."""
    return not request.is_prefill_chunk


class Decodes(NamedTuple):
    """What decoding requests compute in one iteration."""

    tokens: int
    sequences: int
    context: int


def count_decodes(scheduler: Scheduler, requests: Sequence[Request]) -> Decodes:
    """As the sum of `tokens_wanted` over decoding requests, in a tenth of the time: there may be hundreds."""
    going = [
        request
        for request in requests
        if not (placeholders := request.num_output_placeholders)
        or request.num_computed_tokens + 2 - placeholders < request.num_prompt_tokens + request.max_tokens
    ]
    tokens = len(going)
    if scheduler.num_spec_tokens:
        tokens += sum([len(request.spec_token_ids) for request in going])
    return Decodes(tokens, len(going), sum([request.num_computed_tokens for request in going]))


def blocks_to_grow(scheduler: Scheduler, request: Request, tokens: int) -> int:
    """New KV blocks that a running request takes for `tokens` more tokens, at most."""
    end = request.num_computed_tokens + tokens + scheduler.num_lookahead_tokens
    missing = -(-end // scheduler.block_size) - count_held_blocks(scheduler, request)
    return int(max(0, missing) * count_groups(scheduler))


def count_slots(scheduler: Scheduler) -> int:
    """Sequence slots for requests that run: streams that wait for more input keep theirs."""
    most = min(scheduler.max_num_running_reqs, scheduler.max_num_active_reqs)
    return int(most - scheduler.num_waiting_for_streaming_input)


@dataclass
class OnlineDemand:
    """The demand of one iteration.

    Attributes:
        running: Online requests with a slot, in the order in which they get their tokens: those that decode first.
        decoding: Those of them that decode.
        arrivals: Waiting online requests that the iteration can take in if they get slots and blocks.
        tokens: Tokens they compute in this iteration.
        blocks: Free KV blocks they take, at most; the whole sequence of an arrival has to fit.
        shape: What they compute.
        prompts: Those whose prompt is not computed to its end: request, and tokens left after this iteration.
        longest_prompt_tokens: The most tokens that one of the prompts computes in this iteration.
        is_passed_over: Whether vLLM did not take the first arrival in the last step, although it seemed to fit.
        is_cut: Whether a prompt gets fewer tokens than it could use, so that nothing may come behind it.
    """

    running: list[Request]
    decoding: list[Request] = field(default_factory=list)
    arrivals: list[Request] = field(default_factory=list)
    tokens: int = 0
    blocks: int = 0
    shape: IterationShape = field(default_factory=IterationShape)
    prompts: list[tuple[Request, int]] = field(default_factory=list)
    longest_prompt_tokens: int = 0
    is_passed_over: bool = False
    is_cut: bool = False

    @property
    def is_present(self) -> bool:
        """Whether the iteration has online requests."""
        return bool(self.running or self.arrivals)

    @property
    def slots(self) -> int:
        """Sequence slots they take."""
        return len(self.running) + len(self.arrivals)


def measure_demand(
    scheduler: Scheduler,
    running: list[Request],
    waiting: Iterable[Sequence[Request]],
    full_batch: int,
    deadlines: Deadlines,
) -> OnlineDemand:
    """Adds up what the online requests need.

    Args:
        scheduler: vLLM's.
        running: Online requests with a slot.
        waiting: Heaps of waiting online requests; vLLM takes those of the first heap first.
        full_batch: Tokens of the largest iteration.
        deadlines: Say how much of the prompts is computed beside those who decode.
    """
    prompts = [request for request in running if request.is_prefill_chunk]
    decoding = [request for request in running if not request.is_prefill_chunk] if prompts else running
    decodes = count_decodes(scheduler, decoding)
    # vLLM serves them in this order, so that a prompt that is cut short leaves the others their tokens.
    demand = OnlineDemand([*decoding, *prompts] if prompts else running, decoding)
    demand.tokens = min(decodes.tokens, full_batch)
    demand.shape = IterationShape(decode_sequences=decodes.sequences, decode_context=decodes.context)
    demand.blocks = count_growth(scheduler, running)
    limit_ms = deadlines.limit_prompts_ms(decoding, demand.shape)

    def add_prompt(request: Request, context: int, wanted: int) -> int:
        tokens = 0 if demand.is_cut else min(wanted, full_batch - demand.tokens)
        if tokens > 0 and not math.isinf(limit_ms):
            least = min(tokens, SMALLEST_CHUNK_TOKENS)
            tokens = deadlines.model.fit_prefill_tokens(demand.shape, context, limit_ms, tokens)
            if tokens < least:  # The first one gets on, whatever the limit is.
                tokens = 0 if demand.shape.prefill_sequences else least
        if tokens > 0:
            demand.shape = demand.shape.add_prefill(tokens, context)
            demand.tokens += tokens
            demand.longest_prompt_tokens = max(demand.longest_prompt_tokens, tokens)
        demand.is_cut |= tokens < wanted
        demand.prompts.append((request, request.num_tokens - context - tokens))
        return tokens

    for request in prompts:
        add_prompt(request, request.num_computed_tokens, tokens_wanted(scheduler, request))
    slots = count_slots(scheduler)
    queue = _in_order(waiting)
    while demand.slots < slots and not demand.is_cut and (request := next(queue, None)) is not None:
        if not unblock(scheduler, request):
            continue
        admission = look_up_admission(scheduler, request)
        wanted = request.num_tokens - admission.cached_tokens
        threshold = scheduler.scheduler_config.long_prefill_token_threshold
        if add_prompt(request, admission.cached_tokens, min(wanted, threshold or wanted)):
            demand.blocks += admission.blocks
            demand.arrivals.append(request)
    return demand


def count_prompt_tokens(running: Iterable[Request], waiting: Iterable[Sequence[Request]]) -> int:
    """Prompt tokens that online requests have yet to compute. Of those that wait all count, cached or not.

    Args:
        running: Online requests with a slot.
        waiting: Those without, in any order; of many only some count.
    """
    left = sum(max(0, request.num_prompt_tokens - request.num_computed_tokens) for request in running)
    return int(left + sum(request.num_prompt_tokens for request in islice(chain(*waiting), MOST_COUNTED)))


def _in_order(heaps: Iterable[Sequence[Request]]) -> Iterator[Request]:
    for heap in heaps:
        rest = list(heap)
        while rest:
            yield heapq.heappop(rest)


def count_growth(scheduler: Scheduler, running: Sequence[Request], most_tokens: int | None = None) -> int:
    """New KV blocks that running requests take in an iteration, at most.

    Args:
        scheduler: vLLM's.
        running: The requests, in the order in which they get their tokens.
        most_tokens: Of the iteration; without it they get all they could use.
    """
    prompts = [request for request in running if request.is_prefill_chunk]
    decoding = [request for request in running if not request.is_prefill_chunk] if prompts else running
    if scheduler.num_lookahead_tokens or scheduler.num_spec_tokens:
        blocks = sum(blocks_to_grow(scheduler, request, tokens_wanted(scheduler, request)) for request in decoding)
    else:
        size = scheduler.block_size
        blocks = sum([request.num_computed_tokens % size == 0 for request in decoding]) * count_groups(scheduler)
    left = math.inf if most_tokens is None else most_tokens
    for request in prompts:
        tokens = int(min(tokens_wanted(scheduler, request), left))
        left -= tokens
        blocks += blocks_to_grow(scheduler, request, tokens) if tokens > 0 else 0
    return blocks
