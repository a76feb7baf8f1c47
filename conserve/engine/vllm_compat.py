"""Every name of vLLM that this project uses, in one place.

Tested with vLLM 0.32. The names marked (unstable) are documented upstream as subject to change, or have moved before;
`tests/unit/engine/test_vllm_compat.py` says which one is gone when they move.
"""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue  # private
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # unstable
from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # unstable
from vllm.exceptions import VLLMClientError  # unstable
from vllm.v1.executor.multiproc_executor import MultiprocExecutor  # its `_post_init_executor` is private
from vllm.v1.metrics.loggers import StatLoggerBase  # (unstable) plug-in group `vllm.stat_logger_plugins`
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats  # unstable

TESTED_VERSIONS = ("0.32",)

__all__ = [
    "TESTED_VERSIONS",
    "ChatCompletionRequest",
    "CompletionRequest",
    "IterationStats",
    "MessageQueue",
    "MultiModalCacheStats",
    "MultiprocExecutor",
    "SchedulerStats",
    "StatLoggerBase",
    "VLLMClientError",
    "VllmConfig",
    "limit_busy_waiting",
]


def limit_busy_waiting(queue: MessageQueue, spin_s: float, poll_ms: int) -> None:
    """Makes the reader of a queue spin for `spin_s` after each message only, then sleep on its socket.

    The writer's wake-up call is dropped when it follows another one within some milliseconds (a ZeroMQ publisher with
    a high-water mark of 1), so the reader looks for itself after `poll_ms` at the latest. Private:
    `_spin_condition.busy_loop_s` in seconds, and `_spin_condition.wait`, whose caller takes an early return.
    """
    condition = queue._spin_condition
    if condition is None:
        return
    wait = condition.wait

    def wait_shortly(timeout_ms: int | None = None) -> None:
        wait(timeout_ms=poll_ms if timeout_ms is None else min(timeout_ms, poll_ms))

    condition.busy_loop_s = spin_s
    condition.wait = wait_shortly
