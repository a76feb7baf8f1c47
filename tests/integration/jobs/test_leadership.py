"""Controllers of several clusters in one namespace: one is at work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.leadership import Leadership
from conserve.jobs.queue import JobQueue
from tests.integration.bench import LONG_MS, TIMEOUT_S
from tests.integration.jobs.test_redis_full import out_of_memory


class Controller:
    """Says when it is at work, and how often it looked at the lease; killed without a word."""

    def __init__(self, redis: Redis, settings: Settings, cluster: str) -> None:
        self.lease = Leadership(redis, settings.jobs.namespace, cluster, LONG_MS, period_s=0.02)
        self.looks = 0
        take = self.lease.take

        async def count_and_take() -> bool:
            taken = await take()
            self.looks += 1
            return taken

        self.lease.take = count_and_take  # type: ignore[method-assign]
        self.works, self.rests = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self.lease.work(self._work))

    async def _work(self) -> None:
        self.works.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.works.clear()
            self.rests.set()

    async def look(self) -> None:
        """Until it has looked at the lease some times more."""
        before = self.looks
        async with asyncio.timeout(TIMEOUT_S):
            while self.looks < before + 3:
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.fixture
async def started() -> AsyncIterator[list[Controller]]:
    controllers: list[Controller] = []
    yield controllers
    for one in controllers:
        await one.kill()


async def wait(event: asyncio.Event) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        await event.wait()


async def test_the_controller_of_another_cluster_waits_until_the_first_is_gone(
    redis: Redis, settings: Settings, started: list[Controller]
) -> None:
    first = Controller(redis, settings, "one")
    started.append(first)
    await wait(first.works)
    second = Controller(redis, settings, "two")
    started.append(second)
    await second.look()
    assert second.lease.other == "one"
    key = f"{settings.jobs.namespace}:controller"
    await redis.pexpire(key, LONG_MS // 2)
    await first.look()
    assert await redis.pttl(key) > LONG_MS // 2, "it is renewed"
    assert await JobQueue(redis, settings).leader() == "one"
    await first.kill()
    await second.look()
    assert not second.works.is_set()
    await redis.pexpire(key, 1)
    await wait(second.works)
    assert second.lease.other is None


async def test_within_a_cluster_a_successor_begins_at_once(
    redis: Redis, settings: Settings, started: list[Controller]
) -> None:
    first = Controller(redis, settings, "one")
    started.append(first)
    await wait(first.works)
    await first.kill()
    second = Controller(redis, settings, "one")
    started.append(second)
    await wait(second.works)


async def test_one_that_has_lost_its_lease_stops(redis: Redis, settings: Settings, started: list[Controller]) -> None:
    first = Controller(redis, settings, "one")
    started.append(first)
    await wait(first.works)
    key = f"{settings.jobs.namespace}:controller"
    await redis.set(key, "two")
    await wait(first.rests)
    assert first.lease.other == "two"
    await redis.delete(key)
    await wait(first.works)


async def test_it_is_renewed_without_memory(redis: Redis, settings: Settings) -> None:
    lease = Leadership(redis, settings.jobs.namespace, "one", lease_ms=LONG_MS)
    async with out_of_memory(redis):
        assert await lease.take()
        assert await lease.take()


async def test_a_fault_in_the_work_comes_through(redis: Redis, settings: Settings) -> None:
    async def fail() -> None:
        raise ValueError("a fault")

    lease = Leadership(redis, settings.jobs.namespace, "one", period_s=0.02)
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(ValueError, match="a fault"):
            await lease.work(fail)
