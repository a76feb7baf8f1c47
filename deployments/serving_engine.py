"""The engine object inside a replica: Ray Serve LLM's, with our executor on CPUs and our scheduler's page."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from conserve.engine.arguments import Places, settle_places
from conserve.engine.arrival_board import ArrivalBoard
from conserve.engine.continuation import RecordingGenerate, keep_records
from conserve.engine.executor import SleepingMultiprocExecutor
from conserve.engine.options import KEY
from conserve.engine.page import EnginePage, Knobs
from conserve.engine.revision import find_revision
from conserve.engine.stoppable import NO_SAFEPOINTS, has_safepoints
from conserve.engine.worker_setup import prepare_workers
from conserve.models import profiles_dir
from deployments.ray_compat import VLLMEngine, find_client

log = structlog.get_logger(__name__)


class ServingEngine(VLLMEngine):
    """Injected through the `engine_cls` of `LLMServer`: `LLMConfig` insists on the executor named `mp` for CPUs.

    Attributes:
        page: What is shared with the scheduler of this engine, if it is ours.
        board: Where online requests are announced to it.
        outputs: Where the outputs of requests can be watched, once it has started.
        revision: What its tokens are made with, see `find_revision`; None where that is not known.
    """

    page: EnginePage | None = None
    board: ArrivalBoard | None = None
    revision: str | None = None
    outputs: RecordingGenerate | None = None

    async def start(self) -> None:
        """Starts the engine, and shows its workers where online requests are announced."""
        try:
            await super().start()
            client = find_client(self)
            self.outputs = keep_records(client)
            self.revision = await asyncio.to_thread(find_revision, client.vllm_config)
            if self.board is not None and self.page is not None:
                host_kv_bytes = int(self.page.read_counters().host_kv_bytes)
                prepared = await prepare_workers(self.collective_rpc, self.board.path, host_kv_bytes)
                if not prepared.stops:
                    log.warning("offline passes are not stopped for online requests", reason=NO_SAFEPOINTS)
                self.page.write_knobs(
                    Knobs(safepoints_off=float(not prepared.stops), checkpoints_off=float(not prepared.copies))
                )
        finally:
            # Who has mapped it goes on using it, so nothing is left behind however this process ends.
            if self.board is not None:
                self.board.remove()

    def _start_async_llm_engine(self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any) -> Any:
        parallel = vllm_engine_config.parallel_config
        if parallel.distributed_executor_backend == "mp":
            parallel.distributed_executor_backend = SleepingMultiprocExecutor
        if KEY not in vllm_engine_config.additional_config:  # engine.mode: stock
            return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
        self.page = EnginePage.create()
        self.board = ArrivalBoard.create() if has_safepoints(vllm_engine_config) else None
        # Here and not before: the configuration may have been made on another machine.
        places = Places(self.page.path, self.board.path if self.board else None, profiles_dir())
        try:
            settle_places(vllm_engine_config, places)
            return super()._start_async_llm_engine(vllm_engine_args, vllm_engine_config, placement_group)
        finally:
            # The scheduler is there and has mapped it.
            self.page.remove()
