from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from conserve.config import load_settings
from conserve.jobs import link


class FakeRedis:
    def __init__(self) -> None:
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True


async def test_work_begins_again_after_outages_and_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "FIRST_RETRY_S", 0.001)
    clients: list[FakeRedis] = []
    attempts = 0

    async def connect(settings: Any) -> FakeRedis:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise RedisConnectionError("not there yet")
        clients.append(FakeRedis())
        return clients[-1]

    monkeypatch.setattr(link, "connect", connect)
    steady = asyncio.Event()

    async def work(redis: Any) -> None:
        if len(clients) == 1:
            raise RedisConnectionError("gone")
        if len(clients) == 2:
            raise ValueError("a fault of ours")
        steady.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(link.keep_connected(load_settings({}, {}), work))
    await asyncio.wait_for(steady.wait(), 60)
    assert (attempts, [client.closed for client in clients]) == (4, [True, True, False])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clients[-1].closed
