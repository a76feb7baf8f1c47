"""What the engine is doing, as vLLM reports it after each iteration."""

from __future__ import annotations

from dataclasses import dataclass

from conserve.engine.vllm_compat import (
    IterationStats,
    MultiModalCacheStats,
    SchedulerStats,
    StatLoggerBase,
    VllmConfig,
)


@dataclass
class EngineGauges:
    """The newest figures of the engine in this process. `kv_usage` is the share of KV blocks in use, 0 to 1."""

    kv_usage: float = 0.0


GAUGES = EngineGauges()
"""One process holds one engine front end, and vLLM makes the logger itself: so the figures live here."""


class GaugeStatLogger(StatLoggerBase):
    """Keeps the newest figures in `GAUGES`.

    A stat-logger plug-in of vLLM (entry-point group `vllm.stat_logger_plugins`): `ray.serve.llm` builds the engine
    and takes no further loggers.
    """

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self.engine_index = engine_index

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

    def log_engine_initialized(self) -> None:
        """Nothing to say at start."""
