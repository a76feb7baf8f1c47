"""What the engine is doing, as vLLM reports it after each iteration."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from conserve.engine.vllm_compat import (
    IterationStats,
    MultiModalCacheStats,
    SchedulerStats,
    StatLoggerBase,
    VllmConfig,
)
from conserve.policy.outlook import WaitRecord

_KEPT_SHARE = 0.95
"""Of the times of earlier requests, with each that ends."""


@dataclass
class EngineGauges:
    """The newest figures of the engine in this process.

    Attributes:
        kv_usage: Share of KV blocks in use, 0 to 1.
        waits: Of requests that come during an iteration, none of which is stopped.
        prefill_ms: Time from their slots to their first tokens of the requests that have ended lately; older ones count
            less.
        prefill_tokens: Their prompt tokens, those left out that were cached.
    """

    kv_usage: float = 0.0
    waits: WaitRecord = field(default_factory=WaitRecord)
    prefill_ms: float = 0.0
    prefill_tokens: float = 0.0

    @property
    def prompt_token_ms(self) -> float:
        """Time of a prompt token beside all that is computed with it; 0 before the first request has ended."""
        return self.prefill_ms / self.prefill_tokens if self.prefill_tokens > 0 else 0.0

    def add_prefill(self, milliseconds: float, tokens: int) -> None:
        """A request has ended."""
        if milliseconds > 0 and tokens > 0:
            self.prefill_ms = _KEPT_SHARE * self.prefill_ms + milliseconds
            self.prefill_tokens = _KEPT_SHARE * self.prefill_tokens + tokens


GAUGES = EngineGauges()
"""One process holds one engine front end, and vLLM makes the logger itself: so the figures live here."""


class GaugeStatLogger(StatLoggerBase):
    """Keeps the newest figures in `GAUGES`.

    A stat-logger plug-in of vLLM (entry-point group `vllm.stat_logger_plugins`): `ray.serve.llm` builds the engine
    and takes no further loggers.
    """

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self.engine_index = engine_index
        self._ended_s = 0.0
        self._was_busy = False

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Takes the figures of one iteration."""
        if scheduler_stats is not None:
            GAUGES.kv_usage = scheduler_stats.kv_cache_usage
            # One comes for each iteration, when it has ended.
            now_s = time.monotonic()
            if self._was_busy:
                GAUGES.waits.observe(self._ended_s, now_s)
            self._ended_s = now_s
            self._was_busy = scheduler_stats.num_running_reqs > 0
        if iteration_stats is not None:
            for request in iteration_stats.finished_requests:
                tokens = request.num_prompt_tokens - request.num_cached_tokens
                GAUGES.add_prefill(request.prefill_time * 1e3, tokens)

    def log_engine_initialized(self) -> None:
        """Nothing to say at start."""
