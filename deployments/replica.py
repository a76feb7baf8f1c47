"""The engine replica: online requests come in through Serve, offline ones are claimed by the replica's harvester."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import psutil
import structlog
from ray import serve
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from conserve.config import Settings
from conserve.engine.arguments import choose_runner
from conserve.engine.contract import InvalidRequest
from conserve.engine.engine import CoServeEngine
from conserve.engine.vllm_compat import PRIORITY_HEADER
from conserve.telemetry.logs import configure_service_logs
from deployments.departure import Departure
from deployments.errors import refusal
from deployments.harvesting import HeldChecks, ReplicaHarvest
from deployments.ray_compat import RawRequestInfo, find_engine, has_died
from deployments.scaling import EXTRA_REPLICAS
from deployments.serving_engine import ServingEngine

log = structlog.get_logger(__name__)

Answer = Callable[[Any, RawRequestInfo | None], Awaitable[AsyncGenerator[Any, None]]]


class ConServeReplica(LLMServer):
    """An `LLMServer` whose engine also harvests.

    Args:
        llm_config: what `ray.serve.llm` starts the engine from.
        settings: ConServe's settings, with the Redis URL resolved.
    """

    # LLMServer's constructor is a coroutine, which Ray Serve awaits.
    async def __init__(self, llm_config: LLMConfig, settings: Settings) -> None:  # type: ignore[misc]
        configure_service_logs()
        self._settings = settings
        bind_cpu_threads(settings)
        choose_runner(settings.engine)
        await super().__init__(llm_config, engine_cls=ServingEngine)
        engine: ServingEngine = find_engine(self)
        classes = {name: kind.ttft_slo_ms for name, kind in settings.slo.by_priority().items()}
        self._co_engine = CoServeEngine(engine, classes, engine.page, engine.board, lambda: has_died(engine))
        departure = Departure(lambda: has_died(engine))
        self._harvest = ReplicaHarvest(self._co_engine, settings, engine.revision, departure)
        self._checks = HeldChecks(super().check_health, lambda: departure.reason in (None, "engine"))

    async def chat(self, request: Any, raw_request_info: RawRequestInfo | None = None) -> AsyncGenerator[Any, None]:
        """Answers an online chat request."""
        return await self._answer_online(super().chat, request, raw_request_info)

    async def completions(
        self, request: Any, raw_request_info: RawRequestInfo | None = None
    ) -> AsyncGenerator[Any, None]:
        """Answers an online completion request."""
        return await self._answer_online(super().completions, request, raw_request_info)

    async def embeddings(
        self, request: Any, raw_request_info: RawRequestInfo | None = None
    ) -> AsyncGenerator[Any, None]:
        """Answers an online embedding request, where the model can."""
        return await self._answer_online(super().embeddings, request, raw_request_info)

    async def _answer_online(
        self, answer: Answer, request: Any, raw_request_info: RawRequestInfo | None
    ) -> AsyncGenerator[Any, None]:
        try:
            announcement = self._co_engine.claim_online(request)
        except InvalidRequest as error:
            return _answer(refusal(error))
        try:
            responses = await answer(request, drop_priority(raw_request_info))
        except BaseException:
            self._co_engine.withdraw(announcement)
            raise
        return self._co_engine.online(responses, announcement)

    async def answers(self) -> bool:
        """True: asked by the front to learn whether a replica is there."""
        return True

    async def check_health(self) -> None:
        """Called by Serve, which waits for the answer while nothing is wrong.

        Raises:
            Exception: the engine has died.
        """
        await self._checks.answer()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve's autoscaler where there is one."""
        return {EXTRA_REPLICAS: float(self._harvest.extra_replicas)}

    async def __del__(self) -> None:
        # Serve calls and awaits this when the replica is told to go and has no requests any more.
        harvest = getattr(self, "_harvest", None)
        if harvest is not None:
            await harvest.stop()
        await super().__del__()


async def _answer(response: Any) -> AsyncGenerator[Any, None]:
    yield response


def drop_priority(raw_request_info: RawRequestInfo | None) -> RawRequestInfo | None:
    """The same without the header that vLLM takes a priority from, in place of the request's own."""
    if raw_request_info is None:
        return None
    headers = {
        name: value for name, value in raw_request_info.headers.items() if name.lower() != PRIORITY_HEADER.lower()
    }
    return dataclasses.replace(raw_request_info, headers=headers)


def bind_cpu_threads(settings: Settings) -> None:
    """Sets the environment that vLLM's CPU build reads at start: the cores of this replica.

    Two engines of one node would both bind to the node's first cores. Ray Serve gives each replica a rank on its node;
    the node's cores are shared out by it.
    """
    engine = settings.engine
    if engine.cpu_threads_bind != "auto":
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = engine.cpu_threads_bind
        return
    rank = serve.get_replica_context().rank
    neighbours = settings.most_replicas
    if rank is None or neighbours == 1:
        return
    cores = psutil.Process().cpu_affinity() or []
    share = max(1, len(cores) // neighbours)
    first = rank.local_rank * share % max(1, len(cores))
    own = cores[first : first + share]
    if own:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(str(core) for core in own)
        log.info("engine bound to cores", cores=own, local_rank=rank.local_rank)
