"""The routes of files and batches, and a replica beside them that works batches off: for clients that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs.connection import connect
from conserve.jobs.files import FileStore
from conserve.jobs.lifecycle import BatchKeeper
from conserve.jobs.queue import JobQueue
from tests.integration.bench import LONG_MS, MODEL, TIMEOUT_S
from tests.integration.harvest.conftest import running
from tests.integration.harvest.fakes import FakeEngine
from tests.integration.jobs.served_routes import build_app, serve_app


class Worker:
    """Controller, keeper and a harvester with a fake engine, in a thread with a loop of its own."""

    def __init__(self, settings: Settings) -> None:
        harvest = {"report_period_ms": 20, "allotment_ttl_ms": LONG_MS, "max_window": 4}
        jobs = settings.jobs.model_dump() | {"commit_period_ms": 10}
        self._settings = Settings.model_validate(settings.model_dump() | {"harvest": harvest, "jobs": jobs})
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))
        self.engine = FakeEngine()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        self._loop.close()

    def hold(self) -> None:
        """Answers nothing more until `go`."""
        self._loop.call_soon_threadsafe(self.engine.gate.clear)

    def go(self) -> None:
        self._loop.call_soon_threadsafe(self.engine.gate.set)

    async def _run(self) -> None:
        redis = await connect(self._settings)
        try:
            queue, store = JobQueue(redis, self._settings), FileStore(self._settings.files_url)
            board = CapacityBoard(redis, self._settings.jobs.namespace, self._settings.harvest.allotment_ttl_ms)
            harvester = Harvester(self.engine, queue, store, board, self._settings, "r1", MODEL)
            controller = HarvestController(board, queue, self._settings.harvest)
            keeper = BatchKeeper(redis, store, self._settings, [MODEL])
            async with running(controller.run()), running(harvester.run()), running(keeper.run(0.05)):
                await self._over.wait()
            await harvester.drain()
        finally:
            await redis.aclose()


@contextmanager
def work(settings: Settings) -> Iterator[Worker]:
    """A worker, until the block ends."""
    worker = Worker(settings)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


@contextmanager
def serve_with_models(settings: Settings) -> Iterator[str]:
    """Gives the URL of the routes, with the list of models that the front has as well."""
    app = build_app(settings)

    @app.get("/v1/models")
    async def list_models() -> dict[str, object]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "us"}]}

    with serve_app(app) as url:
        yield url
