"""The engine replica: online requests come in through Serve, offline ones are claimed by the replica's harvester."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Final, NoReturn

import psutil
import structlog
from ray import serve
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from conserve.config import Settings
from conserve.engine.arguments import choose_runner
from conserve.engine.contract import EngineDied, EngineGone, InvalidRequest
from conserve.engine.engine import CoServeEngine
from conserve.engine.engine_outlook import EngineSizes, describe_conditions, describe_outlook
from conserve.engine.vllm_compat import PRIORITY_HEADER
from conserve.engine.vllm_front_compat import count_kv_tokens, count_queued_tokens, count_unfinished
from conserve.harvest.engine_metrics import EngineMetrics
from conserve.policy.overload import Conditions
from conserve.policy.stall import StallWatch
from conserve.telemetry.logs import configure_service_logs
from deployments.departure import Departure
from deployments.errors import is_error, refusal
from deployments.harvesting import HeldChecks, ReplicaHarvest
from deployments.online_metrics import OnlineMetrics
from deployments.online_trace import trace_engine
from deployments.overload import OverloadGuard, Visit
from deployments.prompt_text import measure_request
from deployments.pulse import beat
from deployments.ray_compat import RawRequestInfo, find_client, find_engine, has_died
from deployments.ray_metrics import RayRecorder
from deployments.routing_report import MARK_HEADER, Mark, Received, RoutingReport
from deployments.scaling import EXTRA_REPLICAS
from deployments.serving_engine import ServingEngine
from deployments.tracing import start_tracing, stop_tracing

log = structlog.get_logger(__name__)

MEASURE_PERIOD_S: Final = 1.0
"""Between two reports of what the engine has counted."""

HeadedAnswer = Callable[[RawRequestInfo | None], Awaitable[AsyncGenerator[Any, None]]]
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
        start_tracing(settings)
        self._settings = settings
        bind_cpu_threads(settings)
        os.environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] = "0"  # To hosts that `requests.media_domains` does not name.
        choose_runner(settings.engine)
        await super().__init__(llm_config, engine_cls=ServingEngine)
        engine: ServingEngine = find_engine(self)
        self._stall = StallWatch(settings.engine.stall_s)
        classes = {name: kind.ttft_slo_ms for name, kind in settings.slo.by_priority().items()}
        self._co_engine = CoServeEngine(engine, classes, engine.page, engine.board, self._has_ended)
        self._sizes = EngineSizes(
            settings.engine.max_num_seqs,
            settings.engine.max_num_batched_tokens,
            count_kv_tokens(find_client(engine)),
            min(kind.tbt_slo_ms for kind in settings.slo.by_priority().values()),
        )
        recorder = RayRecorder()
        self._online = OnlineMetrics(recorder, settings.slo)
        if engine.outputs is not None:
            engine.outputs.watcher = self._online
        self._guard = OverloadGuard(settings, self._co_engine, self._find_conditions, self._online)
        self._received = Received()
        self._reports = 0
        departure = Departure(self._has_ended)
        self._harvest = ReplicaHarvest(
            self._co_engine,
            settings,
            engine.revision,
            departure,
            recorder=recorder,
            latency=self._online.latency,
        )
        self._measuring = asyncio.create_task(self._measure(EngineMetrics(recorder)))
        self._checks = HeldChecks(super().check_health, lambda: departure.reason in (None, "engine"))

    async def chat(self, request: Any, raw_request_info: RawRequestInfo | None = None) -> AsyncGenerator[Any, None]:
        """Answers an online chat request."""
        answer = partial(self._answer_online, super().chat, request)
        return await self._trace("chat", request, raw_request_info, answer)

    async def completions(
        self, request: Any, raw_request_info: RawRequestInfo | None = None
    ) -> AsyncGenerator[Any, None]:
        """Answers an online completion request."""
        answer = partial(self._answer_online, super().completions, request)
        return await self._trace("completions", request, raw_request_info, answer)

    async def embeddings(
        self, request: Any, raw_request_info: RawRequestInfo | None = None
    ) -> AsyncGenerator[Any, None]:
        """Answers an online embedding request, where the model can."""
        answer = partial(self._answer_online, super().embeddings, request)
        return await self._trace("embeddings", request, raw_request_info, answer)

    async def _trace(
        self, method: str, request: Any, info: RawRequestInfo | None, answer: HeadedAnswer
    ) -> AsyncGenerator[Any, None]:
        traced = await trace_engine(method, request, info, answer)
        return beat(traced, self._settings.http.replica_silence_s)

    async def _answer_online(
        self, answer: Answer, request: Any, raw_request_info: RawRequestInfo | None
    ) -> AsyncGenerator[Any, None]:
        came_s = time.monotonic()
        mark = self._read_mark(raw_request_info)
        if self._co_engine.is_gone:
            raise EngineGone("the engine has ended")
        tokens = mark.prompt_tokens if mark is not None else measure_request(request).tokens
        try:
            visit = self._guard.let_in(request, self._co_engine.find_priority(request), tokens)
        except InvalidRequest as error:
            self._online.refuse(request)
            return _answer(refusal(error))
        if not isinstance(visit, Visit):
            return _answer(visit)
        announcement = self._co_engine.claim_online(request)
        try:
            responses = await answer(request, drop_own_headers(raw_request_info))
        except BaseException:
            self._co_engine.withdraw(announcement)
            visit.end()
            raise
        passed_on = self._co_engine.online(self._watch(responses), announcement, tokens, visit)
        visit.end_with(passed_on)
        return self._online.follow(request, came_s, passed_on)

    async def _watch(self, responses: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """Raises what vLLM 0.32 makes an answer of: that the engine has ended. The front says so in its own words."""
        async with aclosing(responses):
            async for response in responses:
                if is_error(response) and self._co_engine.is_gone:
                    raise EngineDied("the engine has ended")
                yield response

    def _has_ended(self) -> bool:
        return self._stall.is_stalled or has_died(find_engine(self))

    async def _measure(self, metrics: EngineMetrics) -> NoReturn:
        while True:
            stats, counters = self._co_engine.stats(), self._co_engine.scheduler_counters()
            metrics.report(stats, counters)
            if counters is not None:
                # A client that is slow to fetch its answer keeps the request here, but the engine does not work on it.
                waits = count_unfinished(find_client(find_engine(self))) > 0
                has_online = waits and stats.online_running + stats.online_waiting > 0
                self._stall.look(counters.iterations, has_online, time.monotonic())
            self._online.report()
            await asyncio.sleep(MEASURE_PERIOD_S)

    def _find_conditions(self, running: int) -> Conditions:
        return describe_conditions(self._co_engine.scheduler_counters(), self._sizes, running)

    def _read_mark(self, raw_request_info: RawRequestInfo | None) -> Mark | None:
        mark = Mark.read(raw_request_info.headers.get(MARK_HEADER)) if raw_request_info is not None else None
        if mark is not None:
            self._received.note(mark)
        return mark

    async def record_routing_stats(self) -> dict[str, Any]:
        """Called by Serve some times a second, for the routers of online requests."""
        stats: dict[str, Any] = await super().record_routing_stats()
        engine = self._co_engine
        if engine.is_gone:
            return stats
        queued_tokens = count_queued_tokens(find_client(find_engine(self)))
        outlook = describe_outlook(engine.stats(), engine.scheduler_counters(), self._sizes, queued_tokens)
        self._reports += 1
        return {**stats, **RoutingReport.of(outlook, self._reports, self._received.numbers).to_stats()}

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
            self._measuring.cancel()
        await stop_tracing()
        await super().__del__()


async def _answer(response: Any) -> AsyncGenerator[Any, None]:
    yield response


def drop_own_headers(raw_request_info: RawRequestInfo | None) -> RawRequestInfo | None:
    """The same without the header that vLLM takes a priority from, in place of the request's own, and the router's."""
    if raw_request_info is None:
        return None
    dropped = (PRIORITY_HEADER.lower(), MARK_HEADER)
    headers = {name: value for name, value in raw_request_info.headers.items() if name.lower() not in dropped}
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
