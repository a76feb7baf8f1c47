"""What faults and lost time cost, and whom, on a real server with a fake engine."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest import harvester as harvesting
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs.files import FileStore
from tests.integration.bench import MODEL, Bench
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.fakes import FakeEngine
from tests.integration.harvest.test_fairness import ThirstyEngine
from tests.integration.harvest.test_late_tenants import start

Make = Callable[[FakeEngine, str], Harvester]


async def all_done(bench: Bench, batch_id: str, tenant: str = "default") -> bool:
    counts = (await bench.service.for_tenant(tenant).get_batch(batch_id)).request_counts
    return counts.completed + counts.failed == counts.total


async def test_time_behind_online_requests_is_not_held_against_a_request(
    redis: Redis,
    store: FileStore,
    board: CapacityBoard,
    controller: HarvestController,
    engine: FakeEngine,
    fast: Settings,
) -> None:
    raw = fast.model_dump()
    settings = Settings.model_validate(raw | {"jobs": raw["jobs"] | {"suspicions": 2, "max_attempts": 3}})
    bench = Bench(redis, store, settings)
    engine.slow, engine.online_since_s = {"say id-3"}, time.monotonic()
    batch_id = await bench.start(6)
    harvester = Harvester(engine, bench.queue, store, board, settings, "r1", MODEL)

    async def tried_often() -> bool:
        return engine.asked.count("say id-3") > settings.jobs.max_attempts + 2

    async with running(controller.run()), running(harvester.run()):
        await wait_until(tried_often)
        assert await bench.queue.failures(batch_id, 3) == []
        engine.slow.clear()
        await wait_until(lambda: all_done(bench, batch_id))
    _, output, errors = await bench.end(batch_id)
    assert (len(output), errors) == (6, {})


async def test_time_with_a_shut_window_is_not_held_against_a_request(
    bench: Bench, controller: HarvestController, make_harvester: Make, engine: FakeEngine
) -> None:
    engine.gate.clear()
    engine.slow = {"say id-1"}
    batch_id = await bench.start(1)
    harvester = make_harvester(engine, "r1")

    async def runs() -> bool:
        return engine.running == 1

    async def shut_for_long() -> bool:
        """Most of the time since the request began, as the replica sees it."""
        now_s = time.monotonic()
        return shut.read(now_s) - shut_before_s > 0.7 * (now_s - begun_s)

    async def given_back() -> bool:
        return (await bench.queue.states(batch_id, [1])).get(1) == "ready"

    async with running(controller.run()), running(harvester.run()):
        begun_s = time.monotonic()
        await wait_until(runs)
        shut = harvester._crowding._shut
        shut_before_s = shut.read(time.monotonic())
        engine.online_running = 99
        await wait_until(shut_for_long)
        engine.gate.set()
        await wait_until(given_back)
        assert await bench.queue.failures(batch_id, 1) == []
        engine.slow.clear()
        engine.online_running = 0
        await wait_until(lambda: all_done(bench, batch_id))
    assert (await bench.end(batch_id))[2] == {}


async def test_faults_of_one_tenant_s_batch_do_not_stop_another_s(
    bench: Bench,
    controller: HarvestController,
    make_harvester: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harvesting, "FAULT_PAUSE_S", 600.0)
    monkeypatch.setattr(harvesting, "LONGEST_FAULT_PAUSE_S", 600.0)
    engine = ThirstyEngine()
    engine.faults = {f"say a-{number}" for number in range(40)}
    await start(bench, "a", 40)
    sound = await start(bench, "b", 60)
    async with running(controller.run()), running(make_harvester(engine, "r1").run()):
        await wait_until(lambda: all_done(bench, sound, "b"))
    assert 0 < sum(content.startswith("say a") for content in engine.asked) <= 8
