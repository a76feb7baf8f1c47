"""Controllers and harvesters on a real server, with a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest import harvester as harvesting
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs import flex_cleanup
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from tests.integration.bench import LONG_MS, MODEL, TIMEOUT_S
from tests.integration.harvest.fakes import FakeEngine

Background = Callable[[Awaitable[Any]], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def running(work: Awaitable[Any]) -> AsyncIterator[None]:
    """Runs something beside the block, until the block ends. What it raises meanwhile fails the test."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        failed = task.done()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert not failed


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for a condition, for a bounded time."""
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def fast(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of the server under test, with short periods.

    What is said holds for long: on a machine that stands still for a moment, no lease, report or allotment runs out.
    """
    monkeypatch.setattr(harvesting, "LONGEST_RENEWAL_PERIOD_S", 0.1)
    monkeypatch.setattr(flex_cleanup, "_LINGER_MS", 50)
    harvest = {"report_period_ms": 20, "allotment_ttl_ms": LONG_MS, "max_window": 4}
    jobs = settings.jobs.model_dump() | {"commit_period_ms": 10}
    return Settings.model_validate(settings.model_dump() | {"harvest": harvest, "jobs": jobs})


@pytest.fixture
def forgetful(fast: Settings) -> Settings:
    """As `fast`, but what the controller says is over soon."""
    harvest = fast.harvest.model_dump() | {"allotment_ttl_ms": 100}
    return Settings.model_validate(fast.model_dump() | {"harvest": harvest})


def make_board(redis: Redis, settings: Settings) -> CapacityBoard:
    return CapacityBoard(redis, settings.jobs.namespace, settings.harvest.allotment_ttl_ms)


@pytest.fixture
def board(redis: Redis, fast: Settings) -> CapacityBoard:
    return make_board(redis, fast)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def controller(board: CapacityBoard, redis: Redis, fast: Settings) -> HarvestController:
    return HarvestController(board, JobQueue(redis, fast), fast.harvest)


@pytest.fixture
def make_harvester(
    redis: Redis, store: FileStore, board: CapacityBoard, fast: Settings
) -> Callable[[FakeEngine, str], Harvester]:
    def make(engine: FakeEngine, replica_id: str) -> Harvester:
        return Harvester(engine, JobQueue(redis, fast), store, board, fast, replica_id, MODEL)

    return make
