"""Every name of vLLM that this project uses, in one place.

Tested with vLLM 0.32. The names marked (unstable) are documented upstream as subject to change, or have moved before;
`tests/unit/engine/test_vllm_compat.py` says which one is gone when they move.
"""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # unstable
from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # unstable
from vllm.v1.metrics.loggers import StatLoggerBase  # (unstable) plug-in group `vllm.stat_logger_plugins`
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats  # unstable

TESTED_VERSIONS = ("0.32",)

__all__ = [
    "TESTED_VERSIONS",
    "ChatCompletionRequest",
    "CompletionRequest",
    "IterationStats",
    "MultiModalCacheStats",
    "SchedulerStats",
    "StatLoggerBase",
    "VllmConfig",
]
