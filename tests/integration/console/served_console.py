"""The routes of the console on a free port, replicas that report what they are told to, and pages in a browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from playwright.async_api import Browser, BrowserContext, Page
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.messages import CapacityReport
from conserve.jobs.connection import connect
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from conserve.jobs.service import JobService
from conserve.jobs.tenants import find_tenants
from deployments.batch_routes import build_batch_router
from deployments.console.feed import ConsoleFeed, Sources
from deployments.console.routes import build_console_router
from deployments.errors import install_error_handlers
from tests.integration.bench import LONG_MS, MODEL, TIMEOUT_S, Bench
from tests.integration.jobs.served_routes import serve_app

PERIOD_S = 0.1


class Front:
    """What the front of the application has, without Ray. `is_away`: as while Redis is."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.is_away = self.is_ending = False
        self.feed: ConsoleFeed
        self._service: JobService
        self._sources: Sources
        self.app = FastAPI(title="ConServe", lifespan=self._live)
        self.app.include_router(build_batch_router(lambda: self._service))
        self.app.include_router(build_console_router(lambda: self.feed))
        install_error_handlers(self.app)

    @asynccontextmanager
    async def _live(self, app: FastAPI) -> AsyncIterator[None]:
        settings = self.settings
        redis = await connect(settings)
        try:
            self._service = JobService(redis, FileStore(settings.files_url), settings, [MODEL])
            self._sources = Sources(CapacityBoard(redis, settings.jobs.namespace, LONG_MS), JobQueue(redis, settings))
            self.feed = ConsoleFeed(
                lambda: None if self.is_away else self._sources,
                settings,
                find_tenants(settings),
                lambda: self.is_ending,
                PERIOD_S,
            )
            yield
        finally:
            await redis.aclose()


class Console:
    """Pages, and all that happens behind them."""

    def __init__(self, url: str, front: Front, redis: Redis, browser: Browser, stack: AsyncExitStack) -> None:
        self.url = url
        self.front = front
        self.bench = Bench(redis, FileStore(front.settings.files_url), front.settings)
        self.board = CapacityBoard(redis, front.settings.jobs.namespace, LONG_MS)
        self.problems: list[str] = []
        self.requested: list[str] = []
        self._browser = browser
        self._stack = stack

    async def report(self, name: str = "r1", **more: Any) -> None:
        """A replica says how it is."""
        fields = {"replica_id": name, "model": MODEL, "state": "serving", "window": 8} | more
        await self.board.publish_report(CapacityReport.model_validate(fields))

    async def open(self, **context: Any) -> Page:
        """A page in a browser window of its own. `problems` gets what it complains of."""
        window: BrowserContext = await self._browser.new_context(**context)
        self._stack.push_async_callback(window.close)
        window.set_default_timeout(TIMEOUT_S * 1e3)
        page = await window.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: self.problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("request", lambda request: self.requested.append(request.url))
        await page.goto(f"{self.url}/console")
        return page


@asynccontextmanager
async def open_console(settings: Settings, browser: Browser) -> AsyncIterator[Console]:
    """Serves the routes in a thread until the block ends; pages are closed before."""
    front = Front(settings)
    redis = await connect(settings)
    try:
        with serve_app(front.app) as url:
            async with AsyncExitStack() as stack:
                yield Console(url, front, redis, browser, stack)
            async with asyncio.timeout(TIMEOUT_S):
                while front.feed.open_count:
                    await asyncio.sleep(0.02)
    finally:
        async for key in redis.scan_iter(match=f"{settings.jobs.namespace}:*", count=1000):
            await redis.delete(key)
        await redis.aclose()
