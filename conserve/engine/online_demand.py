"""What online requests need in one iteration: tokens, sequence slots, KV blocks, time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from conserve.engine.options import Objective
from conserve.engine.step_meter import StepMeter
from conserve.engine.vllm_compat import (
    Request,
    Scheduler,
    count_groups,
    count_held_blocks,
    look_up_admission,
    unblock,
)
from conserve.policy.latency import IterationShape, LatencyModel
from conserve.policy.token_budget import ArrivalGuard, PromptDemand, limit_iteration_ms


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
        running: Online requests with a slot, in their order.
        decoding: Those of them that decode.
        arrivals: Waiting online requests that the iteration can take in if they get slots and blocks.
        tokens: Tokens they compute in this iteration.
        blocks: Free KV blocks they take, at most; the whole sequence of an arrival has to fit.
        shape: What they compute.
        prompts: Those whose prompt is not computed to its end: request, and tokens left after this iteration.
    """

    running: list[Request]
    decoding: list[Request] = field(default_factory=list)
    arrivals: list[Request] = field(default_factory=list)
    tokens: int = 0
    blocks: int = 0
    shape: IterationShape = field(default_factory=IterationShape)
    prompts: list[tuple[Request, int]] = field(default_factory=list)

    @property
    def is_present(self) -> bool:
        """Whether the iteration has online requests."""
        return bool(self.running or self.arrivals)

    @property
    def slots(self) -> int:
        """Sequence slots they take."""
        return len(self.running) + len(self.arrivals)

    def limit_ms(
        self,
        model: LatencyModel,
        meter: StepMeter,
        guard: ArrivalGuard,
        objectives: Sequence[Objective],
        now_s: float,
        wall_s: float,
    ) -> float:
        """The longest predicted time that the iteration may have; see `limit_iteration_ms`.

        Args:
            model: The latency model.
            meter: Knows when the iteration can begin.
            guard: Knows what arrivals to come need.
            objectives: Of the online classes, by priority.
            now_s: Now, by the clock of `meter`.
            wall_s: Now, by the clock of `Request.arrival_time`.
        """
        last = len(objectives) - 1
        start_s = meter.free_at_s(now_s)
        token_due_s = float("inf")
        if self.decoding:
            classes = {min(request.priority, last) for request in self.decoding} if last else {0}
            tbt_slo_ms = min(objectives[index].tbt_slo_ms for index in classes)
            # Their last tokens came with the last outputs, or come with what is in flight.
            token_due_s = (meter.ended_s if start_s <= now_s else start_s) + tbt_slo_ms / 1e3
        prompts = []
        rest = IterationShape()
        for request, left in self.prompts:
            deadline_s = (
                now_s - wall_s + request.arrival_time + objectives[min(request.priority, last)].ttft_slo_ms / 1e3
            )
            if left:
                rest = rest.add_prefill(left, request.num_tokens - left)
            prompts.append(PromptDemand(deadline_s, model.predict_ms(rest) if rest.prefill_tokens else 0.0))
        arrival_limit_ms = guard.limit_ms(min(objective.ttft_slo_ms for objective in objectives), model)
        return limit_iteration_ms(start_s, token_due_s, prompts, arrival_limit_ms, model.safety_factor())


def measure_demand(
    scheduler: Scheduler, running: list[Request], waiting: Iterable[Sequence[Request]], full_batch: int
) -> OnlineDemand:
    """Adds up what the online requests need.

    Args:
        scheduler: vLLM's.
        running: Online requests with a slot.
        waiting: Heaps of waiting online requests; vLLM takes those of the first heap first.
        full_batch: Tokens of the largest iteration.
    """
    demand = OnlineDemand(running)
    prompts = [request for request in running if request.is_prefill_chunk]
    decoding = [request for request in running if not request.is_prefill_chunk] if prompts else running
    decodes = count_decodes(scheduler, decoding)
    demand.decoding = decoding
    demand.tokens = min(decodes.tokens, full_batch)
    prefills = prefill_tokens = 0
    attention = 0.0
    for request in prompts:
        tokens = min(tokens_wanted(scheduler, request), full_batch - demand.tokens)
        prefills += tokens > 0
        prefill_tokens += tokens
        attention += tokens * (request.num_computed_tokens + tokens / 2)
        demand.tokens += tokens
        demand.prompts.append((request, request.num_tokens - request.num_computed_tokens - tokens))
    demand.blocks = count_growth(scheduler, running)
    slots = count_slots(scheduler)
    queue = _in_order(waiting)
    while demand.slots < slots and demand.tokens < full_batch and (request := next(queue, None)) is not None:
        if not unblock(scheduler, request):
            continue
        admission = look_up_admission(scheduler, request)
        wanted = request.num_tokens - admission.cached_tokens
        tokens = min(wanted, full_batch - demand.tokens)
        prefills += 1
        prefill_tokens += tokens
        attention += tokens * (admission.cached_tokens + tokens / 2)
        demand.tokens += tokens
        demand.blocks += admission.blocks
        demand.arrivals.append(request)
        demand.prompts.append((request, wanted - tokens))
    demand.shape = IterationShape(prefill_tokens, attention, prefills, decodes.sequences, decodes.context)
    return demand


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
