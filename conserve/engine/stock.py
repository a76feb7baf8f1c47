"""vLLM's own scheduler, measured beside ours: how it decides is untouched."""

from __future__ import annotations

import time
from typing import Any

from conserve.engine.lanes import is_offline
from conserve.engine.options import SchedulerOptions
from conserve.engine.page import Counters, EnginePage, Knobs
from conserve.engine.vllm_compat import AsyncScheduler, Request, Scheduler, SchedulerOutput, VllmConfig


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
            self._count(output)
        if self._page is not None:
            self._page.write_counters(counters)
        return output

    def _count(self, output: SchedulerOutput) -> None:
        counters = self._counters
        online = offline = 0
        for request_id, tokens in output.num_scheduled_tokens.items():
            request = self.requests[request_id]
            if not is_offline(request):
                online += 1
                continue
            offline += 1
            # vLLM has added them to the computed ones already.
            if request.num_computed_tokens - tokens < request.num_prompt_tokens:
                counters.offline_prefill_tokens += tokens
            else:
                counters.offline_decode_tokens += tokens
        counters.iterations += 1
        counters.mixed_iterations += online > 0 and offline > 0
        counters.offline_iterations += online == 0

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        if is_offline(request):
            self._counters.offline_preemptions += 1
        else:
            self._counters.online_preemptions += 1
        self._counters.recomputed_tokens += request.num_computed_tokens
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
        self.scheduler_config.long_prefill_token_threshold = int(knobs.long_prefill_token_threshold) or threshold


class AsyncStockScheduler(StockScheduler, AsyncScheduler):
    """With asynchronous scheduling."""


def create_stock_scheduler(
    vllm_config: VllmConfig, options: SchedulerOptions | None = None, **kwargs: Any
) -> Scheduler:
    """What vLLM calls as its `scheduler_cls`; see `create_scheduler`."""
    options = options or SchedulerOptions.from_additional_config(vllm_config.additional_config)
    chosen = AsyncStockScheduler if vllm_config.scheduler_config.async_scheduling else StockScheduler
    return chosen(vllm_config=vllm_config, options=options, **kwargs)
