"""The application in this process: front, controller, keeper and one replica's harvester, on an embedded Redis."""

from __future__ import annotations

import asyncio
import logging
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import uvicorn
from fastapi import FastAPI

from conserve.config import Settings
from conserve.engine.contract import EngineStats, OfflineResult, OnChunk, TokenRecord
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs import embedded
from conserve.jobs.connection import connect
from conserve.jobs.files import FileStore
from conserve.jobs.lifecycle import BatchKeeper
from conserve.jobs.queue import JobQueue
from conserve.telemetry.logs import configure_program_logs
from deployments.testing.front import LightFront
from deployments.testing.grpc_server import serve_on_port
from loadtests.fuzz.corpus import MODEL

START_LIMIT_S: Final = 60.0
KEEPER_PERIOD_S: Final = 0.2
_POLL_S: Final = 0.02

T = TypeVar("T")


class EchoEngine:
    """Answers every offline request at once, whatever it is."""

    async def offline(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        timeout_s: float,
        record: TokenRecord | None = None,
        *,
        on_chunk: OnChunk | None = None,
    ) -> OfflineResult:
        """Runs one request."""
        answer = {"id": "light", "object": "chat.completion", "created": 0, "model": MODEL}
        said: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        if on_chunk is not None:
            on_chunk({**answer, "object": "chat.completion.chunk", "choices": [{**said, "delta": {"content": "done"}}]})
        choice = {**said, "message": {"role": "assistant", "content": "done"}, "text": "done"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return OfflineResult(200, {**answer, "choices": [choice], "usage": usage}, 1, 1)

    def grant_floor(self, share: float) -> None:
        """There are no online requests to take it from."""

    def stats(self) -> EngineStats:
        """Nothing is in it for longer than a moment."""
        return EngineStats(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0)


class LightApplication:
    """All of it, in a thread with a loop of its own.

    Args:
        folder: Of its state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        url = embedded.ensure_running(folder)
        self.settings = Settings.model_validate(
            {
                "state_dir": folder,
                "model": {"name": MODEL},
                "http": {"keys": "none"},
                "jobs": {"redis_url": url, "commit_period_ms": 10},
                "harvest": {"report_period_ms": 50, "max_window": 16},
            }
        )
        self.front: LightFront
        self.app: FastAPI
        self.grpc_port = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._over = asyncio.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="application")

    def start(self) -> None:
        """Starts it, and waits until its queue is there."""
        self._thread.start()
        if not self._started.wait(START_LIMIT_S) or self._error is not None:
            raise RuntimeError("The application has not started.") from self._error

    def stop(self) -> None:
        """Ends all of it."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(START_LIMIT_S)
        embedded.stop(self.folder)

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Has its loop do something."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def do(self, work: Coroutine[Any, Any, T], limit_s: float = START_LIMIT_S) -> T:
        """Has its loop do something, and waits for it."""
        return self.submit(work).result(limit_s)

    @contextmanager
    def serve(self) -> Iterator[int]:
        """The port on which its HTTP routes are served meanwhile, by the server that Serve has, too."""
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            config = uvicorn.Config(self.app, log_level="critical", timeout_graceful_shutdown=1, lifespan="off")
            server = uvicorn.Server(config)
            served = self.submit(server.serve(sockets=[listener]))
            try:
                yield listener.getsockname()[1]
            finally:
                server.should_exit = True
                served.result(START_LIMIT_S)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._live())
        except BaseException as error:  # noqa: BLE001 - whoever waits for the start is told
            self._error = error
        finally:
            self._started.set()

    async def _live(self) -> None:
        settings = self.settings
        redis = await connect(settings)
        await redis.config_set("appendfsync", "always")  # What waits for the disk then waits for no full second.
        queue, store = JobQueue(redis, settings), FileStore(settings.files_url)
        board = CapacityBoard(redis, settings.jobs.namespace, settings.harvest.allotment_ttl_ms)
        controller = HarvestController(board, queue, settings.harvest)
        harvester = Harvester(EchoEngine(), queue, store, board, settings, "light-1", MODEL)
        keeper = BatchKeeper(redis, store, settings, [MODEL])
        self.front = LightFront(settings)
        # The front has set its own. What is logged of thousands of wrong requests helps nobody.
        configure_program_logs(logging.CRITICAL)
        try:
            self.app = self.front.build_app()
            async with asyncio.timeout(START_LIMIT_S):
                while not self.front.is_connected:  # noqa: ASYNC110 - it is told by nobody
                    await asyncio.sleep(_POLL_S)
            work = [controller.run(), harvester.run(), keeper.run(KEEPER_PERIOD_S)]
            async with serve_on_port(self.front) as self.grpc_port, _beside(work):
                self._started.set()
                await self._over.wait()
            await harvester.drain()
        finally:
            await self.front.close()
            await redis.aclose()


@asynccontextmanager
async def _beside(work: list[Coroutine[Any, Any, Any]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@contextmanager
def run_application() -> Iterator[LightApplication]:
    """An application with an empty state, meanwhile."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as name:
        application = LightApplication(Path(name))
        try:
            application.start()
            yield application
        finally:
            application.stop()
