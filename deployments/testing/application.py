"""The application with a light engine and without vLLM: what harvests, leads and leaves is the application's own."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from conserve.config import Settings
from conserve.harvest.attempt import OfflineEngine
from conserve.jobs.errors import ApiError
from conserve.jobs.files import FileStore
from conserve.jobs.link import RedisClient, keep_connected
from conserve.jobs.service import JobService
from conserve.telemetry.logs import configure_service_logs
from deployments.api_errors import install_api_error_handlers
from deployments.batch_routes import build_batch_router
from deployments.controller import ConServeController
from deployments.departure import Departure
from deployments.harvesting import HeldChecks, ReplicaHarvest
from deployments.ray_metrics import RayRecorder
from deployments.replica_loss import ask_again
from deployments.scaling import EXTRA_REPLICAS, find_scaling
from deployments.testing.names import CONTROLLER, ENGINE_RESOURCE, FRONT, ONLINE_LOG, REPLICA
from deployments.tracing import start_tracing, stop_tracing

log = structlog.get_logger(__name__)

HEALTH_CHECK_PERIOD_S: Final = 2.0


class OnlineEngine(OfflineEngine, Protocol):
    """A light engine that answers online requests, too."""

    def online(self, content: str) -> AsyncGenerator[str, None]:
        """Answers a question piece by piece."""

    def has_died(self) -> bool:
        """Whether it has ended."""

    def close(self) -> None:
        """Ends it."""


class OnlineLog:
    """Who works on which online request, on a disk that outlives the process."""

    def __init__(self, settings: Settings) -> None:
        path = settings.state_dir / ONLINE_LOG
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def follow(self, name: str, answer: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """Passes an answer on, and writes down that it begins, and that it is complete."""
        self._write("begin", name)
        async for piece in answer:
            yield piece
        self._write("end", name)

    def _write(self, what: str, name: str) -> None:
        os.write(self._file, f"{what} {name} {os.getpid()}\n".encode())


class LightReplica:
    """A replica: as `ConServeReplica`, with another engine.

    Args:
        settings: ConServe's settings, with the Redis URL resolved.
        make_engine: Makes the engine; its argument is the state folder.
    """

    async def __init__(self, settings: Settings, make_engine: Callable[[Path], OnlineEngine]) -> None:  # type: ignore[misc]
        configure_service_logs()
        start_tracing(settings)
        self._engine = make_engine(settings.state_dir)
        self._log = OnlineLog(settings)
        departure = Departure(self._engine.has_died)
        self._harvest = ReplicaHarvest(self._engine, settings, "light", departure, recorder=RayRecorder())
        self._checks = HeldChecks(self._check_engine, lambda: departure.reason in (None, "engine"))

    async def chat(self, content: str) -> AsyncGenerator[str, None]:
        """Answers a question piece by piece."""
        async for piece in self._log.follow(content, self._engine.online(content)):
            yield piece

    async def check_health(self) -> None:
        """As `ConServeReplica.check_health`."""
        await self._checks.answer()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """As `ConServeReplica.record_autoscaling_stats`."""
        return {EXTRA_REPLICAS: float(self._harvest.extra_replicas)}

    async def __del__(self) -> None:
        harvest = getattr(self, "_harvest", None)
        if harvest is not None:
            await harvest.stop()
            self._engine.close()
        await stop_tracing()

    async def _check_engine(self) -> None:
        if self._engine.has_died():
            raise RuntimeError("the engine has died")


class LightFront:
    """The front: batches and streamed chats.

    Args:
        replicas: Answer chats.
        settings: ConServe's settings, with the Redis URL resolved.
        controller: Kept so that Serve starts it.
    """

    def __init__(self, replicas: DeploymentHandle[Any], settings: Settings, controller: DeploymentHandle[Any]) -> None:
        configure_service_logs()
        start_tracing(settings)
        self._replicas = replicas.options(stream=True)
        self._settings = settings
        self._log = OnlineLog(settings)
        self.service: JobService | None = None
        self._link = asyncio.get_running_loop().create_task(keep_connected(settings, self._offer))

    async def chat(self, content: str) -> Response:
        """Streams the answer to a chat as events; 503 where it does not begin."""
        pieces = self._log.follow(f"front:{content}", ask_again(lambda: _pass_on(self._replicas.chat.remote(content))))
        try:
            first = await anext(pieces)
        except Exception as error:  # noqa: BLE001 - whatever Serve raises for a replica that has ended
            return JSONResponse(ApiError(503, f"{type(error).__name__}: {error}").body(), status_code=503)
        return StreamingResponse(_as_events(first, pieces), media_type="text/event-stream")

    async def __del__(self) -> None:
        self._link.cancel()
        await asyncio.wait([self._link], timeout=5.0)
        await stop_tracing()

    async def _offer(self, redis: RedisClient) -> None:
        settings = self._settings
        self.service = JobService(redis, FileStore(settings.files_url), settings, [settings.model.served_name])
        try:
            await asyncio.Event().wait()
        finally:
            self.service = None


async def _pass_on(responses: AsyncIterable[str]) -> AsyncGenerator[str, None]:
    async for piece in responses:
        yield piece


async def _as_events(first: str, pieces: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    yield _event({"content": first})
    try:
        async for piece in pieces:
            yield _event({"content": piece})
    except Exception as error:  # noqa: BLE001 - as above
        yield _event(ApiError(503, f"{type(error).__name__}: {error}").body())
        return
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _find_front() -> LightFront:
    front: LightFront = serve.get_replica_context().servable_object
    return front


def _find_service() -> JobService:
    service = _find_front().service
    if service is None:
        raise ApiError(503, "Redis is away.", error_type="server_error", retry_after_s=1)
    return service


async def _chat(request: Request) -> Response:
    return await _find_front().chat(str((await request.json())["messages"][-1]["content"]))


def _build_fastapi_app() -> FastAPI:
    app = FastAPI()
    install_api_error_handlers(app)
    app.include_router(build_batch_router(_find_service))
    app.add_api_route("/v1/chat/completions", _chat, methods=["POST"], response_model=None)
    return app


def build_light_app(
    settings: Settings, make_engine: Callable[[Path], OnlineEngine], fronts: int, replicas: int | None = None
) -> Application:
    """The application: replicas one on a node, some fronts, and the controller.

    Args:
        settings: With a Redis URL that all nodes reach.
        make_engine: See `LightReplica`.
        fronts: How many.
        replicas: How many, where it is not what the settings say. With other settings Serve would start all anew.
    """
    number = find_scaling(settings) if replicas is None else {"num_replicas": replicas}
    away = {"num_cpus": 0, "resources": {ENGINE_RESOURCE: 0.01}}  # Not on the head.
    controller = serve.deployment(
        ConServeController,
        name=CONTROLLER,
        num_replicas=1,
        ray_actor_options=away,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
    ).bind(settings, settings.jobs.redis_url, [settings.model.served_name])
    engines = serve.deployment(
        LightReplica,
        name=REPLICA,
        ray_actor_options={"num_cpus": 0, "resources": {ENGINE_RESOURCE: 0.9}},
        max_ongoing_requests=64,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=settings.http.finish_requests_s,
        **number,
    ).bind(settings, make_engine)
    return serve.deployment(
        serve.ingress(_build_fastapi_app())(LightFront),
        name=FRONT,
        num_replicas=fronts,
        ray_actor_options=away,
        max_ongoing_requests=1_000,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
    ).bind(engines, settings, controller)
