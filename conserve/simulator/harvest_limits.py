"""How long an iteration may take, by ConServe's policies, at one replica."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from conserve.policy.latency import IterationShape
from conserve.policy.pass_stop import (
    STOPPABLE_EFFICIENT_SHARE,
    PreemptRule,
    choose_pass_tokens,
    limit_stoppable_ms,
)
from conserve.policy.token_budget import (
    ArrivalGuard,
    PromptDemand,
    limit_efficient_ms,
    limit_iteration_ms,
    limit_prompts_ms,
    limit_wait_ms,
)
from conserve.simulator.engine_state import EngineState
from conserve.simulator.request import SimRequest

if TYPE_CHECKING:
    from conserve.simulator.online_demand import OnlineDemand


_NOTHING: Final = IterationShape()
KNOWN_S: Final = 1.0
"""What the guard of arrivals says is asked for again after so long without one."""


@dataclass(frozen=True)
class Mechanisms:
    """Objectives of online requests, and which mechanisms are switched on.

    Attributes:
        ttft_slo_ms, tbt_slo_ms: Objectives; `inf` for none.
        safepoints: Passes are stopped between two layers.
        resume: They go on where they stopped.
        checkpoints: KV blocks are copied to host memory.
        token_budget: Iterations are limited by the objectives.
        arrival_guard: Also by what a request that arrives later needs.
        prefix_order: Offline requests with a common prefix follow each other.
        preempt: For which arrivals a pass is stopped.
        full_passes: Iterations without online requests are as large as the batch, whatever the objectives.
        offline_pass_tokens: Tokens of an iteration without online requests, at most; 0 for the largest batch.
    """

    ttft_slo_ms: float = math.inf
    tbt_slo_ms: float = math.inf
    safepoints: bool = True
    resume: bool = True
    checkpoints: bool = True
    token_budget: bool = True
    arrival_guard: bool = True
    prefix_order: bool = True
    preempt: PreemptRule = "slo"
    full_passes: bool = False
    offline_pass_tokens: int = 0

    def without(self, names: Collection[str]) -> Mechanisms:
        """With some of them switched off, by name."""
        return replace(
            self,
            safepoints=self.safepoints and "safepoints" not in names,
            resume=self.resume and "resume" not in names,
            checkpoints=self.checkpoints and "checkpoints" not in names,
            token_budget=self.token_budget and "token_budget" not in names,
            prefix_order=self.prefix_order and "prefix_order" not in names,
        )


class HarvestLimits:
    """Limits of one replica's iterations, as the engine's `Deadlines` finds them.

    Args:
        state: Of the engine.
        mechanisms: Objectives.
        guard: Knows what arrivals to come need.

    Attributes:
        efficient_ms: No iteration with online requests has to be longer.
    """

    def __init__(self, state: EngineState, mechanisms: Mechanisms, guard: ArrivalGuard) -> None:
        self.model = state.model
        self._state = state
        self._does = mechanisms
        self._guard = guard
        self._ttft_slo_ms = mechanisms.ttft_slo_ms if mechanisms.token_budget else math.inf
        self._tbt_slo_ms = mechanisms.tbt_slo_ms if mechanisms.token_budget else math.inf
        self._slos = (self._ttft_slo_ms,)
        self._first_token_ms: float | None = None
        self._arrival_ms = self._spare_ms = math.inf
        self._known_until_s = -math.inf
        self.efficient_ms = self._pass_efficient_ms = math.inf
        self.note_learnt()

    def note_arrival(self) -> None:
        """A request has come, so that others may be typical now."""
        self._first_token_ms = None
        self._known_until_s = -math.inf

    def note_learnt(self) -> None:
        """The model has learnt from an iteration."""
        self._first_token_ms = None
        self.efficient_ms = limit_efficient_ms(self.model)
        self._pass_efficient_ms = limit_efficient_ms(self.model, STOPPABLE_EFFICIENT_SHARE)

    def first_token_ms(self) -> float:
        """How long a typical request takes to its first token, once the engine is free."""
        if self._first_token_ms is None:
            self._first_token_ms = self._guard.first_token_ms(self.model)
        return self._first_token_ms

    def token_due_s(self) -> float:
        """When the next token of those who decode is due; `inf` if nobody does."""
        if not self._state.online.size:
            return math.inf
        return self._state.last_tokens_s + self._tbt_slo_ms / 1e3

    def limit_prompts_ms(self, shape: IterationShape, now_s: float) -> float:
        """The longest predicted time of an iteration with online prompts beside these decodes."""
        token_due_s = self.token_due_s()
        if math.isinf(token_due_s):
            return math.inf
        available_ms = (token_due_s - now_s) * 1e3 / self._state.safety
        return limit_prompts_ms(min(available_ms, self.efficient_ms), self.model.predict_ms(shape))

    def arrival_ms(self, now_s: float) -> float:
        """The longest an iteration may take for an arrival that has to wait for it."""
        if not self._does.arrival_guard:
            return math.inf
        self._ask_guard(now_s)
        return self._arrival_ms

    def spare_ms(self, now_s: float) -> float:
        """How long a typical long prompt can wait and still meet its objective."""
        self._ask_guard(now_s)
        return self._spare_ms

    def _ask_guard(self, now_s: float) -> None:
        """What the guard says changes with each arrival, and once after minutes without any."""
        if now_s >= self._known_until_s:
            ttft_slo_ms = self._guard.ttft_slo_ms(now_s, self._slos)
            self._spare_ms = ttft_slo_ms - self.first_token_ms()
            self._arrival_ms = math.inf
            if ttft_slo_ms < math.inf:
                self._arrival_ms = limit_wait_ms(self._spare_ms, ttft_slo_ms, self.model.overhead_ms())
            self._known_until_s = now_s + KNOWN_S

    def limit_ms(self, demand: OnlineDemand, now_s: float) -> float:
        """The longest predicted time of the next iteration; `inf` for any."""
        if not demand.is_present and self._does.full_passes:
            return math.inf
        if not demand.is_present and self._does.safepoints:
            return self.limit_pass_ms(now_s)
        limit_ms = limit_iteration_ms(
            now_s, self.token_due_s(), self._list_prompts(demand.prompts), self.arrival_ms(now_s), self._state.safety
        )
        return limit_ms if math.isinf(limit_ms) else min(limit_ms, self.efficient_ms)

    def limit_after_ms(self, now_s: float) -> float:
        """The same of iterations after the prompts of the next one, in which online requests decode."""
        limit_ms = limit_iteration_ms(
            now_s, now_s + self._tbt_slo_ms / 1e3, (), self.arrival_ms(now_s), self._state.safety
        )
        return limit_ms if math.isinf(limit_ms) else min(limit_ms, self.efficient_ms)

    def limit_pass_ms(self, now_s: float) -> float:
        """The longest predicted time of an offline iteration that an arrival can stop."""
        self._ask_guard(now_s)
        arrival_ms = self._arrival_ms
        if math.isinf(arrival_ms):
            return math.inf
        ttft_slo_ms = self._guard.ttft_slo_ms(now_s, self._slos)
        stoppable_ms = limit_stoppable_ms(arrival_ms, ttft_slo_ms, self._state.costs.layers) / self._state.safety
        return min(stoppable_ms, self._pass_efficient_ms)

    def choose_pass_tokens(self, now_s: float, most: int) -> int:
        """Prompt tokens of a pass that cannot be continued when it is stopped."""
        arrivals_per_s = self._guard.arrivals_per_s(now_s)
        stop_s = self._state.overhead_ms / 1e3
        return choose_pass_tokens(self.model, IterationShape(), most, arrivals_per_s, stop_s)

    def _list_prompts(self, prompts: Sequence[tuple[SimRequest, int]]) -> Sequence[PromptDemand]:
        if not prompts:
            return ()
        found = []
        rest = _NOTHING
        for request, left in prompts:
            if left:
                rest = rest.add_prefill(left, request.total_tokens - left)
            rest_ms = self.model.predict_ms(rest) if rest.prefill_tokens else 0.0
            found.append(PromptDemand(request.arrival_s + self._ttft_slo_ms / 1e3, rest_ms))
        return found
