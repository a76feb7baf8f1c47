"""The engine object inside a replica: Ray Serve LLM's, with our executor on CPUs and our scheduler's page."""

from __future__ import annotations

from typing import Any

from conserve.engine.arguments import settle_places
from conserve.engine.executor import SleepingMultiprocExecutor
from conserve.engine.options import KEY
from conserve.engine.page import EnginePage
from conserve.models import profiles_dir
from deployments.ray_compat import VLLMEngine


class ServingEngine(VLLMEngine):
    """Injected through the `engine_cls` of `LLMServer`: `LLMConfig` insists on the executor named `mp` for CPUs.

    Attributes:
        page: What is shared with the scheduler of this engine, if it is ours.
    """

    page: EnginePage | None = None

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        parallel = vllm_engine_config.parallel_config
        if parallel.distributed_executor_backend == "mp":
            parallel.distributed_executor_backend = SleepingMultiprocExecutor
        if KEY not in vllm_engine_config.additional_config:  # engine.mode: stock
            return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
        self.page = EnginePage.create()
        # Here and not before: the configuration may have been made on another machine.
        settle_places(vllm_engine_config, self.page.path, profiles_dir())
        try:
            return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
        finally:
            # The scheduler is there and has mapped it, so nothing is left behind however this process ends.
            self.page.remove()
