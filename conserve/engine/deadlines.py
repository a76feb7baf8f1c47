"""When the next tokens of online requests are due, and so how long an iteration may take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from conserve.engine.options import Objective
from conserve.engine.step_meter import StepMeter
from conserve.engine.vllm_compat import Request
from conserve.policy.latency import IterationShape, LatencyModel
from conserve.policy.pass_stop import (
    STOPPABLE_EFFICIENT_SHARE,
    Slack,
    can_bear_mixed,
    choose_pass_tokens,
    find_slack,
    limit_stoppable_ms,
)
from conserve.policy.token_budget import (
    ArrivalGuard,
    PromptDemand,
    limit_efficient_ms,
    limit_iteration_ms,
    limit_prompts_ms,
)

if TYPE_CHECKING:
    from conserve.engine.online_demand import OnlineDemand


class Deadlines:
    """The deadlines of one step.

    Args:
        model: The latency model.
        meter: Knows when the iteration can begin.
        guard: Knows what arrivals to come need.
        objectives: Of the online classes, by priority.
        now_s: Now, by the clock of `meter`.
        wall_s: Now, by the clock of `Request.arrival_time`.
    """

    def __init__(
        self,
        model: LatencyModel,
        meter: StepMeter,
        guard: ArrivalGuard,
        objectives: Sequence[Objective],
        now_s: float,
        wall_s: float,
    ) -> None:
        self.model = model
        self._guard = guard
        self._objectives = objectives
        self._ttft_slos_ms = [objective.ttft_slo_ms for objective in objectives]
        self._now_s = now_s
        self._wall_offset_s = now_s - wall_s
        self._start_s = meter.free_at_s(now_s)
        self._last_tokens_s = meter.last_tokens_s(now_s)

    def limit_prompts_ms(self, decoding: Sequence[Request], shape: IterationShape) -> float:
        """The longest predicted time of an iteration with online prompts in it; `inf` if nobody decodes beside them.

        Args:
            decoding: Online requests that decode.
            shape: What they compute.
        """
        token_due_s = self._token_due_s(decoding)
        if math.isinf(token_due_s) or not self.model.ready:
            return math.inf
        available_ms = (token_due_s - self._start_s) * 1e3 / self.model.safety_factor()
        efficient_ms = limit_efficient_ms(self.model)
        return limit_prompts_ms(min(available_ms, efficient_ms), self.model.predict_ms(shape))

    def limit_ms(self, demand: OnlineDemand) -> float:
        """The longest predicted time of an iteration with offline tokens in it; `inf` without objectives.

        See `limit_iteration_ms` and `limit_efficient_ms`.
        """
        prompts = []
        rest = IterationShape()
        for request, left in demand.prompts:
            objective = self._objective(request)
            deadline_s = self._wall_offset_s + request.arrival_time + objective.ttft_slo_ms / 1e3
            if left:
                rest = rest.add_prefill(left, request.num_tokens - left)
            prompts.append(PromptDemand(deadline_s, self.model.predict_ms(rest) if rest.prefill_tokens else 0.0))
        limit_ms = limit_iteration_ms(
            self._start_s,
            self._token_due_s(demand.decoding),
            prompts,
            self._guard.limit_ms(self._now_s, self._ttft_slos_ms, self.model),
            self.model.safety_factor(),
        )
        return limit_ms if math.isinf(limit_ms) else min(limit_ms, limit_efficient_ms(self.model))

    def limit_pass_ms(self, layers: int) -> float:
        """The longest predicted time of an offline iteration that an arrival can stop between two of its layers."""
        arrival_ms = self._guard.limit_ms(self._now_s, self._ttft_slos_ms, self.model)
        if math.isinf(arrival_ms):
            return math.inf
        ttft_slo_ms = self._guard.ttft_slo_ms(self._now_s, self._ttft_slos_ms)
        stoppable_ms = limit_stoppable_ms(arrival_ms, ttft_slo_ms, layers) / self.model.safety_factor()
        return min(stoppable_ms, limit_efficient_ms(self.model, STOPPABLE_EFFICIENT_SHARE))

    def choose_pass_tokens(self, max_tokens: int) -> int:
        """Prompt tokens of a pass that cannot be continued when it is stopped (see `policy.pass_stop`)."""
        arrivals_per_s = self._guard.arrivals_per_s(self._now_s)
        stop_s = self.model.overhead_ms() / 1e3
        return choose_pass_tokens(self.model, IterationShape(), max_tokens, arrivals_per_s, stop_s)

    def find_slack(self, demand: OnlineDemand, offline_decodes: IterationShape) -> Slack | None:
        """Time for offline work alone before those who decode have to go on; None if there is none for sure.

        None, too, where arrivals can bear iterations that prompts ride in: those cost less.

        Args:
            demand: Of the online requests.
            offline_decodes: The offline requests that will decode beside them.
        """
        if not demand.decoding or demand.arrivals or demand.prompts or not self.model.ready:
            return None
        tbt_slo_ms = self._tbt_slo_ms(demand.decoding)
        spare_ms = self._guard.spare_ms(self._now_s, self._ttft_slos_ms, self.model)
        if can_bear_mixed(spare_ms, tbt_slo_ms, self.model.overhead_ms()):
            return None
        shape = demand.shape.add_decodes(offline_decodes.decode_sequences, offline_decodes.decode_context)
        return find_slack(
            self._start_s,
            self._last_tokens_s + tbt_slo_ms / 1e3,
            tbt_slo_ms,
            self.model.predict_ms(shape) * self.model.safety_factor(),
            self.model.overhead_ms(),
        )

    def _token_due_s(self, decoding: Sequence[Request]) -> float:
        """When the next token of these requests is due; `inf` if there are none."""
        return self._last_tokens_s + self._tbt_slo_ms(decoding) / 1e3 if decoding else math.inf

    def _tbt_slo_ms(self, decoding: Sequence[Request]) -> float:
        """The shortest time between tokens that one of these requests is promised."""
        if len(self._objectives) == 1:
            return self._objectives[0].tbt_slo_ms
        return min(self._objective(request).tbt_slo_ms for request in decoding)

    def _objective(self, request: Request) -> Objective:
        return self._objectives[min(int(request.priority), len(self._objectives) - 1)]
