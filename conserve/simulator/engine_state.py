"""The requests of one replica's engine: who waits, who computes its prompt, who decodes, and what each holds."""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from conserve.policy.latency import IterationShape, LatencyModel
from conserve.policy.overload import OverloadGate
from conserve.policy.prefix_order import PrefixBacklog
from conserve.simulator.coarse_steps import bound_coarsely
from conserve.simulator.decodes import Decodes
from conserve.simulator.engine_costs import EngineCosts, make_model
from conserve.simulator.kv_memory import KvMemory
from conserve.simulator.metrics import Metrics
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Step

LONGEST_STEP_MS: Final = 1_000.0
"""Iterations of more time than this are not decided at once: what policies know fades by the second."""
DRIFT_SHARE: Final = 0.02
"""A decision holds while the time of an iteration has grown by no more than this."""


_NOTHING: Final = IterationShape()
_number = attrgetter("number")


@dataclass(frozen=True)
class EngineLimits:
    """Sizes that an engine is started with, as vLLM calls them."""

    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2_048
    long_prefill_token_threshold: int = 0


class EngineState:
    """What schedulers decide about.

    Args:
        costs: Of iterations.
        limits: Sizes of the engine.
        metrics: Where to count.
        coarse: Whether several iterations are one step although requests begin and end in them: decisions are made for
            a second at a time, or until an online request comes.

    Attributes:
        waiting: Online requests without a slot, the oldest first.
        online_prompts, offline_prompts: With a slot, and a prompt that is not computed; in the order of their turn.
        online, offline: Those that decode.
        backlog: Offline requests without a slot.
        gate: Decides which online requests are refused; None where none is.
        last_tokens_s: When online requests got their last tokens.
        model: The scheduler's latency model, of which `safety` and `overhead_ms` are kept.
        flow_left: Tokens of online prompts that are not computed, where the step under way has computed more than it
            says; None where it has not.
        flowing_tokens, flowed_s: Tokens of online prompts that the step under way computes to their end, and when it
            will have done so, although it goes on.
        time_ms, token_ms, attention_ms, context_ms, decode_ms: As of the costs, quick to read.
    """

    def __init__(self, costs: EngineCosts, limits: EngineLimits, metrics: Metrics, *, coarse: bool = False) -> None:
        self.coarse = coarse
        self.costs = costs
        self.limits = limits
        self.metrics = metrics
        self.model: LatencyModel = make_model(costs)
        self.time_ms = costs.make_timer()
        self.token_ms, self.attention_ms = costs.token_ms, costs.attention_ms
        self.context_ms, self.decode_ms = costs.context_ms, costs.decode_ms
        self.safety = self.model.safety_factor()
        self.overhead_ms = self.model.overhead_ms()
        self.kv = KvMemory(costs.kv_blocks, costs.block_size)
        self.waiting: deque[SimRequest] = deque()
        self.online_prompts: list[SimRequest] = []
        self.offline_prompts: list[SimRequest] = []
        self.online = Decodes()
        self.offline = Decodes()
        self.backlog: PrefixBacklog[SimRequest] = PrefixBacklog()
        self.gate: OverloadGate | None = None
        self.last_tokens_s = -1e9
        self.flow_left: int | None = None
        self.flowing_tokens = 0
        self.flowed_s = math.inf
        self.finished: list[SimRequest] = []

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return self.online.size + self.offline.size + len(self.online_prompts) + len(self.offline_prompts)

    @property
    def online_running(self) -> int:
        """Online requests that have got their first token."""
        return self.online.size

    @property
    def offline_running(self) -> int:
        """Offline requests in the engine, waiting ones included."""
        return self.offline.size + len(self.offline_prompts) + len(self.backlog)

    @property
    def has_online(self) -> bool:
        """Whether there is an online request."""
        return bool(self.waiting or self.online_prompts or self.online.size)

    @property
    def has_offline(self) -> bool:
        """Whether there is an offline request."""
        return bool(self.offline_prompts or self.offline.size or len(self.backlog))

    def learn(self, shape: IterationShape, took_ms: float) -> None:
        """An iteration has come to its end, and the scheduler's latency model learns from it."""
        self.model.observe(shape, took_ms)
        self.safety = self.model.safety_factor()
        self.overhead_ms = self.model.overhead_ms()

    def add_offline(self, request: SimRequest) -> None:
        """An offline request comes in."""
        path = (request.prefix,) if request.prefix else ()
        self.backlog.add(request.number, request, path)

    def admit(self, request: SimRequest, cached: int) -> None:
        """A waiting request, which is in no queue any more, gets a slot."""
        self.kv.admit(request, cached)
        (self.online_prompts if request.online else self.offline_prompts).append(request)

    def preempt(self, request: SimRequest, *, stays: bool) -> int:
        """A running request gives everything up. Returns how many tokens it had computed."""
        group = self.online if request.online else self.offline
        prompts = self.online_prompts if request.online else self.offline_prompts
        if request in prompts:
            prompts.remove(request)
        else:
            group.remove(request)
        computed = request.computed
        self.kv.release(request, stays=stays)
        request.preemptions += 1
        if request.online:
            self.waiting.appendleft(request)
            self.metrics.online_preemptions += 1
        else:
            path = (request.prefix,) if request.prefix else ()
            self.backlog.add_front(request.number, request, path, computed)
            self.metrics.offline_preemptions += 1
        return computed

    def find_oldest_offline(self) -> SimRequest | None:
        """The first of them; None if there is none."""
        return min(itertools.chain(self.offline, self.offline_prompts), key=_number, default=None)

    def list_offline(self) -> list[SimRequest]:
        """Running offline requests, the oldest first."""
        return sorted([*self.offline, *self.offline_prompts], key=_number)

    def computed_of(self, request: SimRequest) -> int:
        """Tokens of a running request in the KV cache."""
        group = self.online if request.online else self.offline
        return group.computed_of(request) if request in group else request.computed

    def bound_count(
        self,
        step: Step,
        spare_tokens: float,
        *,
        kept_tokens: int = 0,
        closely: bool = False,
        after_ms: float | None = None,
    ) -> None:
        """Sets how many iterations of a step there are: until a request ends, a prompt ends, or memory does.

        Args:
            step: With the time of its first iteration; what it computes does not change from one to the next.
            spare_tokens: KV memory that it may take, in tokens.
            kept_tokens: KV memory that new offline requests leave free.
            closely: Whether it must be looked at closely in any case.
            after_ms: As of `bound_coarsely`.
        """
        if self.coarse and not closely and bound_coarsely(self, step, spare_tokens, kept_tokens, after_ms):
            return
        count = 1 << 30
        growth = 0
        if step.online_decodes and self.online.size:
            count = min(count, self.online.iterations_to_end())
            growth += self.online.size
        if step.offline_decodes:
            count = min(count, self.offline.iterations_to_end()) if not step.held else 1
            growth += step.offline_decodes
        if len(step.chunks) > 1 or step.held:
            count = 1
        for request, tokens in step.chunks:
            count = min(count, max(1, request.to_compute // tokens))
            growth += tokens
        if growth:
            count = min(count, int(spare_tokens / growth))
        if step.slope_ms > 0:
            count = min(count, 1 + int(DRIFT_SHARE * step.first_ms / step.slope_ms))
        step.count = max(1, min(count, int(LONGEST_STEP_MS / step.first_ms)))

    def find_slope_ms(self, step: Step) -> float:
        """How much longer each next iteration of a step takes."""
        slope_ms = self.context_ms * step.shape.decode_sequences
        for _, tokens in step.chunks:
            slope_ms += self.attention_ms * tokens * tokens
        return slope_ms

    def decode_shape(self) -> IterationShape:
        """All online requests that decode."""
        return _NOTHING.add_decodes(self.online.size, self.online.context)
