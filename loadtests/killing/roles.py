"""What runs in each process, a replica, the controller, or the front: the code of the application, without Ray."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.harvester import Harvester
from conserve.jobs.errors import ApiError
from conserve.jobs.files import FileStore
from conserve.jobs.flex import FlexService
from conserve.jobs.link import RedisClient, keep_connected
from conserve.jobs.queue import JobQueue
from conserve.jobs.service import JobService
from conserve.telemetry.logs import configure_service_logs
from deployments.api_errors import install_api_error_handlers
from deployments.batch_routes import build_batch_router
from deployments.controller import ConServeController
from deployments.flex_routes import answer_flex
from loadtests.killing.questions import ENDPOINT
from loadtests.killing.testing.engine import MODEL, LightEngine

Role = Literal["replica", "controller", "front"]
FRONT_SOCKET: Final = "front.sock"
ENGINE_LOG: Final = "engines.log"
"""What the engines have produced; in the state folder, as the socket."""


def play(role: Role, settings: Settings, redis_url: str, name: str, log: Path) -> None:
    """Runs one of the processes until it is killed.

    Args:
        role: Which.
        settings: Of the application.
        redis_url: Of its embedded Redis.
        name: Of the process.
        log: What it says goes there.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    configure_service_logs()
    asyncio.run(_ROLES[role](settings, redis_url, name))


async def _run_replica(settings: Settings, redis_url: str, name: str) -> None:
    async def harvest(redis: RedisClient) -> None:
        harvester = Harvester(
            engine=LightEngine(random.Random(name), settings.state_dir / ENGINE_LOG),
            queue=JobQueue(redis, settings),
            store=FileStore(settings.files_url),
            board=CapacityBoard(redis, settings.jobs.namespace, settings.harvest.allotment_ttl_ms),
            settings=settings,
            replica_id=f"{name}-{os.getpid()}",
            model=MODEL,
            revision="light",
        )
        try:
            await harvester.run()
        finally:
            await harvester.drain()

    await keep_connected(settings.with_redis_url(redis_url), harvest)


async def _run_controller(settings: Settings, redis_url: str, name: str) -> None:
    controller = ConServeController(settings, redis_url, [MODEL], cluster=f"household {settings.state_dir}")
    while True:
        await asyncio.sleep(1.0)
        await controller.check_health()


async def _run_front(settings: Settings, redis_url: str, name: str) -> None:
    socket = settings.state_dir / FRONT_SOCKET
    socket.unlink(missing_ok=True)
    await uvicorn.Server(
        uvicorn.Config(_build_front(settings, redis_url), uds=str(socket), log_level="warning")
    ).serve()


def _build_front(settings: Settings, redis_url: str) -> FastAPI:
    service: JobService | None = None
    flex: FlexService | None = None

    async def offer(redis: RedisClient) -> None:
        nonlocal service, flex
        store = FileStore(settings.files_url)
        service = JobService(redis, store, settings, [MODEL])
        flex = FlexService(redis, store, settings, [MODEL])
        try:
            await flex.run()
        finally:
            service = flex = None

    def find_service() -> JobService:
        if service is None:
            raise _away()
        return service

    async def chat(request: Request) -> Response:
        if flex is None:
            raise _away()
        return await answer_flex(flex, ENDPOINT, request)

    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        link = asyncio.create_task(keep_connected(settings.with_redis_url(redis_url), offer))
        try:
            yield
        finally:
            link.cancel()
            await asyncio.wait([link])

    app = FastAPI(lifespan=connected)
    app.include_router(build_batch_router(find_service))
    app.add_api_route(ENDPOINT, chat, methods=["POST"], response_model=None)
    install_api_error_handlers(app)
    app.exception_handler(Exception)(_fail)
    return app


async def _fail(_request: Request, error: Exception) -> JSONResponse:
    # With an error body, so that it is not taken for the word of something in front of the front.
    return JSONResponse(ApiError(500, f"{type(error).__name__}: {error}").body(), status_code=500)


def _away() -> ApiError:
    return ApiError(503, "Redis is away.", error_type="server_error", retry_after_s=1)


_ROLES: Final[dict[Role, Callable[[Settings, str, str], Coroutine[Any, Any, None]]]] = {
    "replica": _run_replica,
    "controller": _run_controller,
    "front": _run_front,
}
