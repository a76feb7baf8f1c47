"""Asynchronous scheduling on the CPU, where vLLM 0.32 switches it off: this is how GPUs run.

The engine's process builds its executor first, and its scheduler and batch queue after it; so the executor can switch
it on again. The model runner then wants a stream and events of CUDA to copy sampled tokens; on the CPU they are there
at once, so names that do nothing are enough.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from vllm.config import VllmConfig

from conserve.engine.cpu_worker import SafepointCPUWorker
from conserve.engine.executor import SleepingMultiprocExecutor


class AsyncCpuExecutor(SleepingMultiprocExecutor):
    """Switches asynchronous scheduling on in the engine's process."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        vllm_config.scheduler_config.async_scheduling = True
        vllm_config.parallel_config.worker_cls = f"{__name__}.AsyncCpuWorker"
        super().__init__(vllm_config, *args, **kwargs)
        assert vllm_config.max_concurrent_batches == 2  # what the engine goes by


class AsyncCpuWorker(SafepointCPUWorker):
    """Runs the model with the parts of CUDA replaced that asynchronous scheduling uses."""

    def init_device(self) -> None:
        torch.cuda.Event = torch.Event = _Nothing
        torch.cuda.Stream = _Nothing
        torch.cuda.current_stream = _Nothing
        torch.cuda.stream = nullcontext
        super().init_device()
        assert self.model_runner.use_async_scheduling


class _Nothing:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...
