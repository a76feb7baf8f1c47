"""A replica that is told to go, on a real server with a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs.queue import JobQueue
from tests.integration.bench import TIMEOUT_S, Bench
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.fakes import FakeEngine
from tests.integration.harvest.test_harvesting import all_done

Make = Callable[[FakeEngine, str], Harvester]


async def test_a_replica_told_to_go_gives_its_work_back_and_says_that_it_goes(
    bench: Bench, controller: HarvestController, make_harvester: Make, engine: FakeEngine, board: CapacityBoard
) -> None:
    engine.gate.clear()
    batch_id = await bench.start(10)
    leaver, heir = make_harvester(engine, "leaver"), FakeEngine()

    async def busy() -> bool:
        return engine.running == 4

    async def leaving() -> bool:
        return [(one.state, one.offline_running) for one in await board.read_reports()] == [("draining", 0)]

    async with running(controller.run()), running(leaver.run()):
        await wait_until(busy)
        await leaver.leave(limit_s=TIMEOUT_S)
        (summary,) = await bench.queue.active_summaries()
        assert (summary.leased, summary.ready) == (0, 10)
        await wait_until(leaving)
        asked = len(engine.asked)
        async with running(make_harvester(heir, "heir").run()):
            await wait_until(lambda: all_done(bench, batch_id))
            assert (len(engine.asked), len(heir.asked)) == (asked, 10), "nothing more was begun where it goes"
    assert (await bench.end(batch_id))[0].status == "completed"


async def test_what_a_claim_brings_to_a_replica_that_goes_is_given_back(
    bench: Bench,
    controller: HarvestController,
    make_harvester: Make,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()
    claim = JobQueue.claim

    async def claim_slowly(self: JobQueue, *args: Any) -> Any:
        claimed = await claim(self, *args)
        asked.set()
        await answered.wait()
        return claimed

    monkeypatch.setattr(JobQueue, "claim", claim_slowly)
    await bench.start(10)
    leaver = make_harvester(engine, "leaver")
    async with running(controller.run()), running(leaver.run()):
        await asked.wait()
        leaving = asyncio.create_task(leaver.leave(limit_s=TIMEOUT_S))
        await asyncio.sleep(0)
        answered.set()
        await leaving

        async def free() -> bool:
            (summary,) = await bench.queue.active_summaries()
            return (summary.leased, summary.ready) == (0, 10)

        await wait_until(free)
    assert engine.asked == []


async def test_work_of_a_dead_engine_says_why_before_it_is_given_back(
    bench: Bench, controller: HarvestController, make_harvester: Make, engine: FakeEngine
) -> None:
    engine.gate.clear()
    batch_id = await bench.start(2)
    leaver = make_harvester(engine, "leaver")

    async def busy() -> bool:
        return engine.running == 2

    async with running(controller.run()), running(leaver.run()):
        await wait_until(busy)
        leaving = asyncio.create_task(leaver.leave(limit_s=TIMEOUT_S, ended_s=TIMEOUT_S))
        await asyncio.sleep(0)
        engine._death.set()
        engine.gate.set()
        await leaving
    assert engine.cancelled == []
    assert [len(await bench.queue.failures(batch_id, line)) for line in (1, 2)] == [1, 1]
