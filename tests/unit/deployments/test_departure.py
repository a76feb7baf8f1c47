from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from deployments import departure as departures
from deployments.departure import Departure

TIMEOUT_S = 60.0


class Signs:
    """Why the replica may have to go."""

    def __init__(self) -> None:
        self.died = self.told = self.node = False
        self.asked = 0
        self.head_is_away = False

    def is_node_leaving(self) -> bool:
        self.asked += 1
        if self.head_is_away:
            raise ConnectionError("the head is away")
        return self.node


@pytest.fixture
def signs() -> Signs:
    return Signs()


@asynccontextmanager
async def watched(signs: Signs) -> AsyncIterator[Departure]:
    departure = Departure(lambda: signs.died, lambda: signs.told, signs.is_node_leaving)
    task = asyncio.create_task(departure.watch())
    try:
        yield departure
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "LOOK_PERIOD_S", 0.01)
    monkeypatch.setattr(departures, "NODE_PERIOD_S", 0.01)


@pytest.mark.parametrize(("sign", "reason"), [("told", "stop"), ("node", "node"), ("died", "engine")])
async def test_each_sign_is_a_reason(signs: Signs, sign: str, reason: str) -> None:
    async with watched(signs) as departure:
        await wait_until(lambda: signs.asked > 1)
        assert departure.reason is None
        setattr(signs, sign, True)
        async with asyncio.timeout(TIMEOUT_S):
            assert await departure.wait() == reason


async def test_an_engine_that_dies_later_is_a_reason_of_its_own(signs: Signs) -> None:
    async with watched(signs) as departure:
        signs.told = True
        await wait_until(lambda: departure.reason == "stop")
        signs.died = True
        await wait_until(lambda: departure.reason == "engine")


async def test_a_head_that_is_away_is_asked_again(signs: Signs) -> None:
    signs.head_is_away = True
    async with watched(signs) as departure:
        await wait_until(lambda: signs.asked > 2)
        assert departure.reason is None
        signs.head_is_away, signs.node = False, True
        await wait_until(lambda: departure.reason == "node")


def test_outside_of_serve_there_is_nothing_to_leave() -> None:
    with pytest.raises(RuntimeError, match="no replica"):
        Departure(lambda: False)
