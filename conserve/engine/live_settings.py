"""What the front can change while the scheduler runs, and what the scheduler reports to it: its end of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from conserve.engine.options import Objective
from conserve.engine.page import Counters, EnginePage, Knobs
from conserve.policy.harvest_rate import measure_costs
from conserve.policy.latency import LatencyModel

ERROR_PERIOD_STEPS = 64
"""The model's own error is a sort of its recent ones: not in every step."""


class LiveSettings:
    """The knobs as they stand.

    Args:
        page: File of the `EnginePage`; None for an engine whose settings stay as they are.
        objectives: Of the online classes, as the engine was started with.
        largest_batch: Tokens of the largest iteration.

    Attributes:
        knobs: As the front has set them.
        objectives: Of the online classes, now.
        full_batch: Tokens of an iteration, at most, now.
    """

    def __init__(self, page: Path | None, objectives: Sequence[Objective], largest_batch: int) -> None:
        self._page = EnginePage(page) if page else None
        self._started_with = self.objectives = tuple(objectives)
        self._largest_batch = self.full_batch = largest_batch
        self.knobs = Knobs()

    def read(self) -> bool:
        """Reads the page. Returns whether something has changed."""
        if self._page is None:
            return False
        knobs = self._page.read_knobs()
        if knobs == self.knobs:
            return False
        self.knobs = knobs
        self.objectives = self._choose_objectives(knobs)
        self.full_batch = min(int(knobs.max_num_batched_tokens) or self._largest_batch, self._largest_batch)
        return True

    def report(self, counters: Counters, model: LatencyModel, backlog_requests: int) -> None:
        """Writes the counters onto the page, with what is known of the latency model now and then."""
        if counters.iterations % ERROR_PERIOD_STEPS == 1:
            error = model.error()
            counters.model_error_median, counters.model_error_p95 = error.median, error.p95
            counters.model_samples = error.samples
            counters.model_ready = float(model.ready)
            counters.overhead_ms = model.overhead_ms()
            costs = measure_costs(model)
            counters.iteration_ms, counters.prompt_token_ms = costs.overhead_ms, costs.prompt_token_ms
            counters.decode_ms = costs.decode_ms
        counters.backlog_requests = backlog_requests
        if self._page is not None:
            self._page.write_counters(counters)

    def _choose_objectives(self, knobs: Knobs) -> tuple[Objective, ...]:
        if knobs.token_budget_off:
            return (Objective(ttft_slo_ms=math.inf, tbt_slo_ms=math.inf),) * len(self._started_with)
        first, *others = self._started_with
        ttft_slo_ms, tbt_slo_ms = knobs.ttft_slo_ms or first.ttft_slo_ms, knobs.tbt_slo_ms or first.tbt_slo_ms
        return (Objective(ttft_slo_ms=ttft_slo_ms, tbt_slo_ms=tbt_slo_ms), *others)
