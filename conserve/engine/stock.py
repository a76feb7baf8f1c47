"""vLLM's own scheduler, measured beside ours: how it decides is untouched."""

from __future__ import annotations

import time
from typing import Any

from conserve.engine.options import SchedulerOptions
from conserve.engine.page import Counters, EnginePage, Knobs
from conserve.engine.vllm_compat import (
    AsyncScheduler,
    ModelRunnerOutput,
    Request,
    Scheduler,
    SchedulerOutput,
    VllmConfig,
    limit_chunks,
)
from conserve.engine.work_tally import WorkTally


class StockScheduler(Scheduler):
    """vLLM's scheduler, with sizes that can be changed between the runs of a benchmark, and with counters."""

    # Attributes of vLLM's scheduler that are set here.
    max_num_running_reqs: int
    max_num_active_reqs: int
    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, options: SchedulerOptions, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._page = EnginePage(options.page) if options.page else None
        self._knobs = Knobs()
        self._counters = Counters()
        self._tally = WorkTally(self.requests, self._counters)
        self._largest = (
            self.max_num_scheduled_tokens,
            self.max_num_running_reqs,
            self.scheduler_config.long_prefill_token_threshold,
        )

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Schedules one iteration, as vLLM does."""
        self._read_knobs()
        began_s = time.monotonic()
        output = super().schedule(throttle_prefills)
        counters = self._counters
        counters.schedule_s += time.monotonic() - began_s
        if output.total_num_scheduled_tokens > 0:
            self._tally.count(output)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, Any]:
        """Takes in what an iteration has computed."""
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)
        self._counters.counted_until_s = time.monotonic()
        if self._page is not None:
            self._page.write_counters(self._counters)
        return outputs

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        self._tally.preempt(request)
        super()._preempt_request(request, timestamp, drop_stale_output)

    def _read_knobs(self) -> None:
        if self._page is None:
            return
        knobs = self._page.read_knobs()
        if knobs == self._knobs or self.running:  # Sizes change between runs only.
            return
        self._knobs = knobs
        tokens, sequences, threshold = self._largest
        self.max_num_scheduled_tokens = min(int(knobs.max_num_batched_tokens) or tokens, tokens)
        self.max_num_running_reqs = min(int(knobs.max_num_seqs) or sequences, sequences)
        self.max_num_active_reqs = self.max_num_running_reqs
        limit_chunks(self, int(knobs.long_prefill_token_threshold) or threshold)


class AsyncStockScheduler(StockScheduler, AsyncScheduler):
    """With asynchronous scheduling."""


def create_stock_scheduler(
    vllm_config: VllmConfig, options: SchedulerOptions | None = None, **kwargs: Any
) -> Scheduler:
    """What vLLM calls as its `scheduler_cls`; see `create_scheduler`."""
    options = options or SchedulerOptions.from_additional_config(vllm_config.additional_config)
    chosen = AsyncStockScheduler if vllm_config.scheduler_config.async_scheduling else StockScheduler
    return chosen(vllm_config=vllm_config, options=options, **kwargs)
