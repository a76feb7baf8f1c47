from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from conserve.config import Settings
from conserve.harvest import harvester as harvesting
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.harvest.messages import CapacityReport
from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from conserve.policy.allotment import Allotment, JobShare
from tests.integration.bench import MODEL, Bench
from tests.integration.harvest.conftest import make_board, running, wait_until
from tests.integration.harvest.fakes import FakeEngine

Make = Callable[[FakeEngine, str], Harvester]


async def all_done(bench: Bench, batch_id: str) -> bool:
    counts = (await bench.get(batch_id)).request_counts
    return counts.completed + counts.failed == counts.total


async def test_a_batch_is_worked_off_within_the_window(
    bench: Bench, controller: HarvestController, make_harvester: Make, engine: FakeEngine
) -> None:
    batch_id = await bench.start(30)
    engine.gate.clear()

    async def full() -> bool:
        return engine.running == 4

    async with running(controller.run()), running(make_harvester(engine, "r1").run()):
        await wait_until(full)
        engine.gate.set()
        await wait_until(lambda: all_done(bench, batch_id))
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, len(output), errors) == ("completed", 30, {})
    assert batch.usage.total_tokens == 30 * 10
    assert engine.most_running == 4
    assert sorted(engine.asked) == sorted(f"say id-{number}" for number in range(1, 31))


async def test_two_replicas_share_the_work_and_nothing_runs_twice(
    bench: Bench, controller: HarvestController, make_harvester: Make
) -> None:
    engines = FakeEngine(), FakeEngine()
    for engine in engines:
        engine.gate.clear()
    batch_id = await bench.start(40)
    first, second = (make_harvester(engine, f"r{number}") for number, engine in enumerate(engines))

    async def both_run() -> bool:
        return all(engine.running for engine in engines)

    async with running(controller.run()), running(first.run()), running(second.run()):
        await wait_until(both_run)
        for engine in engines:
            engine.gate.set()
        await wait_until(lambda: all_done(bench, batch_id))
    assert len(engines[0].asked) + len(engines[1].asked) == 40
    assert (await bench.end(batch_id))[0].status == "completed"


async def test_online_load_shuts_the_window(
    bench: Bench, controller: HarvestController, make_harvester: Make, engine: FakeEngine, board: CapacityBoard
) -> None:
    engine.online_running = 8
    batch_id = await bench.start(5)

    async def reported_shut() -> bool:
        return (await board.read_allotment("r1")) == Allotment(0)

    async with running(controller.run()), running(make_harvester(engine, "r1").run()):
        await wait_until(reported_shut)
        assert engine.asked == []
        engine.online_running = 0
        await wait_until(lambda: all_done(bench, batch_id))


async def test_a_line_that_is_wrong_or_kills_the_engine_stops_no_other(
    bench: Bench, controller: HarvestController, make_harvester: Make, engine: FakeEngine, fast: Settings
) -> None:
    engine.refusals, engine.faults = {"say id-2"}, {"say id-3"}
    batch_id = await bench.start(6)
    async with running(controller.run()), running(make_harvester(engine, "r1").run()):
        await wait_until(lambda: all_done(bench, batch_id))
    batch, output, errors = await bench.end(batch_id)
    assert batch.status == "completed"
    assert errors == {"id-2": "response", "id-3": "max_attempts_exceeded"}
    assert len(output) == 4
    assert engine.asked.count("say id-3") == fast.jobs.max_attempts
    assert engine.asked.count("say id-2") == 1


@pytest.mark.parametrize("kind", ["poisons", "slow"])
async def test_a_poison_request_goes_to_the_error_file_alone(
    redis: Redis,
    store: FileStore,
    board: CapacityBoard,
    controller: HarvestController,
    engine: FakeEngine,
    fast: Settings,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(harvesting, "FAULT_PAUSE_S", 0.01)
    monkeypatch.setattr(harvesting, "LONGEST_FAULT_PAUSE_S", 0.01)
    raw = fast.model_dump()
    settings = Settings.model_validate(raw | {"jobs": raw["jobs"] | {"suspicions": 2, "max_attempts": 5}})
    bench = Bench(redis, store, settings)
    setattr(engine, kind, {"say id-3"})
    batch_id = await bench.start(12)
    harvester = Harvester(engine, bench.queue, store, board, settings, "r1", MODEL)
    async with running(controller.run()), running(harvester.run()):
        await wait_until(lambda: all_done(bench, batch_id))
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, errors) == ("completed", {"id-3": "poison_request"})
    assert len(output) == 11
    assert engine.asked.count("say id-3") == 3
    assert engine.company["say id-3"] == 0
    kinds = [(str(one.kind), one.alone) for one in await bench.queue.failures(batch_id, 3)]
    name = "engine_died" if kind == "poisons" else "timeout"
    assert kinds == [(name, False), (name, False), (name, True)]


async def test_a_request_to_be_run_alone_waits_for_the_others(
    redis: Redis,
    store: FileStore,
    board: CapacityBoard,
    controller: HarvestController,
    engine: FakeEngine,
    fast: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harvesting, "FAULT_PAUSE_S", 0.0)
    raw = fast.model_dump()
    settings = Settings.model_validate(raw | {"jobs": raw["jobs"] | {"suspicions": 1, "max_attempts": 5}})
    bench = Bench(redis, store, settings)
    batch_id = await bench.start(3)
    engine.gate.clear()
    engine.poisons = {"say id-1"}
    harvester = Harvester(engine, bench.queue, store, board, settings, "r1", MODEL)

    async def waiting() -> bool:
        states = await bench.queue.states(batch_id, [1, 2, 3])
        return set(states.values()) == {"leased"} and engine.running == 2 and engine.asked.count("say id-1") == 1

    async with running(controller.run()), running(harvester.run()):
        await wait_until(waiting)
        engine.poisons = set()
        engine._death = asyncio.Event()
        engine.gate.set()
        await wait_until(lambda: all_done(bench, batch_id))
    assert engine.company["say id-1"] == 0
    _, output, errors = await bench.end(batch_id)
    assert (len(output), errors) == (3, {})


async def test_a_claim_that_was_not_answered_costs_no_attempt(
    bench: Bench,
    controller: HarvestController,
    make_harvester: Make,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harvesting, "RETRY_S", 0.01)
    real = JobQueue.claim
    unanswered: list[ClaimedRequest] = []

    async def claim(self: JobQueue, batch_id: str, *args: Any) -> list[ClaimedRequest]:
        claimed = await real(self, batch_id, *args)
        if claimed and not unanswered:
            unanswered.extend(claimed)
            raise RedisConnectionError("away")
        return claimed

    monkeypatch.setattr(JobQueue, "claim", claim)
    batch_id = await bench.start(6)
    async with running(controller.run()), running(make_harvester(engine, "r1").run()):
        await wait_until(lambda: all_done(bench, batch_id))
    assert unanswered
    assert len(engine.asked) == 6
    assert (await bench.end(batch_id))[2] == {}


async def test_a_claim_that_was_not_answered_is_given_back_at_the_end(
    bench: Bench,
    controller: HarvestController,
    make_harvester: Make,
    engine: FakeEngine,
    board: CapacityBoard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = JobQueue.claim

    async def claim(self: JobQueue, *args: Any) -> list[ClaimedRequest]:
        await real(self, *args)
        raise RedisConnectionError("away")

    await bench.start(6)

    async def some_leased() -> bool:
        return (await bench.queue.active_summaries())[0].leased > 0

    harvester = make_harvester(engine, "r1")
    with monkeypatch.context() as patch:
        patch.setattr(JobQueue, "claim", claim)
        async with running(controller.run()), running(harvester.run()):
            await wait_until(some_leased)
    await harvester.drain()
    (summary,) = await bench.queue.active_summaries()
    assert (summary.leased, summary.ready) == (0, 6)
    assert await board.read_reports() == []


async def test_storage_that_is_away_costs_no_attempts(
    bench: Bench,
    controller: HarvestController,
    make_harvester: Make,
    engine: FakeEngine,
    fast: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harvesting, "FAULT_PAUSE_S", 0.01)
    monkeypatch.setattr(harvesting, "LONGEST_FAULT_PAUSE_S", 0.01)
    reads = 0
    read_range = FileStore.read_range

    async def count_and_read(self: FileStore, file_id: str, offset: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        return await read_range(self, file_id, offset, length)

    monkeypatch.setattr(FileStore, "read_range", count_and_read)
    batch_id = await bench.start(3)
    file = Path(fast.files_url) / bench.store.file_path((await bench.get(batch_id)).input_file_id)
    away = file.with_suffix(".away")
    file.rename(away)

    async def tried_too_often() -> bool:
        return reads > 3 * (fast.jobs.max_attempts + 2)

    async with running(controller.run()), running(make_harvester(engine, "r1").run()):
        await wait_until(tried_too_often)
        assert engine.asked == []
        away.rename(file)
        await wait_until(lambda: all_done(bench, batch_id))
    assert (await bench.end(batch_id))[2] == {}


async def test_cancelled_batch_is_let_go_and_keeps_what_is_done(
    bench: Bench, controller: HarvestController, make_harvester: Make, engine: FakeEngine
) -> None:
    batch_id = await bench.start(20)
    engine.answers_until_gate_shuts = 5

    async def some_done() -> bool:
        return (await bench.get(batch_id)).request_counts.completed >= 4

    async def let_go() -> bool:
        (summary,) = await bench.queue.active_summaries()
        return engine.running == 0 and summary.leased == 0

    async with running(controller.run()), running(make_harvester(engine, "r1").run()):
        await wait_until(some_done)
        await bench.service.cancel_batch(batch_id)
        await wait_until(let_go)
    batch, output, errors = await bench.end(batch_id)
    assert batch.status == "cancelled"
    assert len(output) >= 4
    assert set(errors.values()) <= {"batch_cancelled"}
    assert len(output) + len(errors) == 20


async def test_drained_replica_gives_its_work_back_at_once(
    bench: Bench, controller: HarvestController, make_harvester: Make, engine: FakeEngine, board: CapacityBoard
) -> None:
    engine.gate.clear()
    batch_id = await bench.start(10)

    async def busy() -> bool:
        return engine.running == 4

    leaver, heir = make_harvester(engine, "leaver"), FakeEngine()
    async with running(controller.run()):
        async with running(leaver.run()):
            await wait_until(busy)
        await leaver.drain()
        assert engine.running == 0
        (summary,) = await bench.queue.active_summaries()
        assert (summary.leased, summary.ready) == (0, 10)
        assert [report.replica_id for report in await board.read_reports()] == []
        async with running(make_harvester(heir, "heir").run()):
            await wait_until(lambda: all_done(bench, batch_id))
    assert len(heir.asked) == 10
    assert (await bench.end(batch_id))[0].status == "completed"


async def test_replica_goes_on_alone_when_the_controller_is_gone(
    redis: Redis, store: FileStore, engine: FakeEngine, forgetful: Settings
) -> None:
    bench, board = Bench(redis, store, forgetful), make_board(redis, forgetful)
    harvester = Harvester(engine, bench.queue, store, board, forgetful, "r1", MODEL)
    batch_id = await bench.start(10)

    async def reported_alone() -> bool:
        return [(report.alone, report.window) for report in await board.read_reports()] == [(True, 4)]

    async with running(harvester.run()):
        await wait_until(lambda: all_done(bench, batch_id))
        await wait_until(reported_alone)


async def test_reports_and_allotments_expire(board: CapacityBoard, redis: Redis, forgetful: Settings) -> None:
    await board.publish_report(CapacityReport(replica_id="r1", model="m", state="serving", window=1))
    await board.publish_allotments({"r1": Allotment(3, (JobShare("b1", 2), JobShare("b2", 1)))})
    assert [report.replica_id for report in await board.read_reports()] == ["r1"]
    assert await board.read_allotment("r1") == Allotment(3, (JobShare("b1", 2), JobShare("b2", 1)))
    assert await board.read_allotment("r2") is None
    short = make_board(redis, forgetful)
    await short.publish_report(CapacityReport(replica_id="r1", model="m", state="serving", window=1))
    await short.publish_allotments({"r1": Allotment(3)})

    async def gone() -> bool:
        return await board.read_reports() == [] and await board.read_allotment("r1") is None

    await wait_until(gone)
