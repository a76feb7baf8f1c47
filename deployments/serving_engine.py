"""The engine object inside a replica: Ray Serve LLM's, with our executor on CPUs."""

from __future__ import annotations

from typing import Any

from conserve.engine.executor import SleepingMultiprocExecutor
from deployments.ray_compat import VLLMEngine


class ServingEngine(VLLMEngine):
    """Injected through the `engine_cls` of `LLMServer`: `LLMConfig` insists on the executor named `mp` for CPUs."""

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        parallel = vllm_engine_config.parallel_config
        if parallel.distributed_executor_backend == "mp":
            parallel.distributed_executor_backend = SleepingMultiprocExecutor
        return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
