from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conserve.config import Settings
from conserve.engine.contract import EngineStats
from deployments import departure as departures
from deployments import harvesting
from deployments.departure import Departure
from deployments.harvesting import HeldChecks, ReplicaHarvest

TIMEOUT_S = 60.0


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.01)


class Checked:
    """What is asked whether it is well."""

    def __init__(self) -> None:
        self.asked = 0
        self.is_well = self.is_wanted = True

    async def check(self) -> None:
        self.asked += 1
        if not self.is_well:
            raise RuntimeError("not well")


async def make_checks(checked: Checked, hold_s: float) -> HeldChecks:
    checks = HeldChecks(checked.check, lambda: checked.is_wanted, hold_s)
    await checks.answer()
    return checks


async def test_the_first_check_is_answered_at_once_and_later_ones_late() -> None:
    checked = Checked()
    checks = await make_checks(checked, hold_s=0.2)
    held = asyncio.create_task(checks.answer())
    done, _ = await asyncio.wait([held], timeout=0.1)
    assert not done
    await held
    assert checked.asked == 2, "at the end"


async def test_a_second_check_does_not_wait_for_the_first() -> None:
    checks = await make_checks(Checked(), hold_s=TIMEOUT_S)
    held = asyncio.create_task(checks.answer())
    await asyncio.sleep(0.01)
    async with asyncio.timeout(TIMEOUT_S / 2):
        await checks.answer()
    assert not held.done()
    held.cancel()


async def test_what_is_wrong_is_said_at_once() -> None:
    checked = Checked()
    checks = await make_checks(checked, hold_s=TIMEOUT_S)
    held = asyncio.create_task(checks.answer())
    await asyncio.sleep(0.01)
    checked.is_well = checked.is_wanted = False
    async with asyncio.timeout(TIMEOUT_S / 2):
        with pytest.raises(RuntimeError, match="not well"):
            await held
        with pytest.raises(RuntimeError, match="not well"):
            await checks.answer()


async def test_a_replica_that_ends_itself_lets_the_check_that_is_under_way_wait() -> None:
    checked = Checked()
    checks = await make_checks(checked, hold_s=TIMEOUT_S)
    held = asyncio.create_task(checks.answer())
    await asyncio.sleep(0.01)
    checked.is_well = False
    done, _ = await asyncio.wait([held], timeout=0.2)
    assert not done
    held.cancel()


class Engine:
    """Has online requests, and may be dead."""

    def __init__(self) -> None:
        self.online = 2
        self.is_dead = False

    def stats(self) -> EngineStats:
        return EngineStats(self.online, 0, 0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    monkeypatch.setattr(harvesting.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(departures, "LOOK_PERIOD_S", 0.01)
    return Engine()


def make_harvest(engine: Any, ended: list[int]) -> ReplicaHarvest:
    departure = Departure(lambda: engine.is_dead, lambda: False, lambda: False)
    # There is no Redis: with a dead engine that is no reason to stay.
    settings = Settings.model_validate({"jobs": {"redis_url": "unix:///nowhere.sock"}})
    return ReplicaHarvest(engine, settings, None, departure, lambda: ended.append(engine.online))


async def test_a_replica_whose_engine_dies_ends_when_its_clients_know(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvesting, "LAST_WORDS_S", TIMEOUT_S)
    ended: list[int] = []
    harvest = make_harvest(engine, ended)
    harvest._handed_back.set()
    engine.is_dead = True
    await wait_until(lambda: harvest._departure.reason == "engine")
    await asyncio.sleep(0.1)
    assert ended == []
    engine.online = 0
    await wait_until(lambda: bool(ended))
    await harvest.stop()


async def test_it_does_not_wait_for_ever(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harvesting, "LAST_WORDS_S", 0.1)
    ended: list[int] = []
    harvest = make_harvest(engine, ended)
    engine.is_dead = True
    await wait_until(lambda: ended == [2])
    await harvest.stop()
