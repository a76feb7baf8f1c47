"""The controller's rounds on a real server: what it writes, and what another one that takes over goes on from."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.messages import SCHEMA_VERSION, CapacityReport, ControllerRecord
from conserve.jobs.queue import JobQueue
from conserve.policy.allotment import Allotment
from conserve.policy.fair_shares import ShareRecord
from tests.integration.bench import MODEL, Bench
from tests.integration.harvest.conftest import make_board


def report(replica_id: str, **changes: Any) -> CapacityReport:
    known: dict[str, Any] = {"replica_id": replica_id, "model": MODEL, "state": "serving", "window": 0}
    return CapacityReport.model_validate(known | changes)


def make_controller(redis: Redis, settings: Settings) -> HarvestController:
    return HarvestController(make_board(redis, settings), JobQueue(redis, settings), settings.harvest)


async def test_only_what_changes_is_written(board: CapacityBoard, controller: HarvestController, bench: Bench) -> None:
    await bench.start(100)
    for name in ("r1", "r2"):
        await board.publish_report(report(name))
    first = await controller.step()
    assert controller.latest.written == 2
    assert await controller.step() == first
    assert controller.latest.written == 0
    await board.publish_report(report("r2", online_running=6))
    second = await controller.step()
    assert controller.latest.written == 1
    assert {name: await board.read_allotment(name) for name in first} == second
    assert controller.latest.whole_ms > 0


async def test_an_allotment_that_stays_the_same_is_put_up_again_in_time(board: CapacityBoard) -> None:
    ttl_ms = 2_000
    short = CapacityBoard(board._redis, "short", ttl_ms)
    allotments = {"r1": Allotment(3)}
    written = [await short.publish_allotments(allotments, now_ms) for now_ms in (10_000, 10_250, 10_500, 10_750, 9_000)]
    assert written == [1, 0, 1, 0, 1], "also when the server's clock has gone back"
    assert await short.publish_allotments(allotments) == 1, "without a time each is"


async def test_reports_carry_the_server_s_time_and_a_version(board: CapacityBoard, redis: Redis) -> None:
    await board.publish_report(report("r1"))
    (first,) = await board.read_reports()
    assert (first.at_ms, first.schema_version) == (0, SCHEMA_VERSION), "the server's clock is known from its answer"
    await board.publish_report(report("r1"))
    (second,) = await board.read_reports()
    seconds, _ = await redis.time()
    assert abs(second.at_ms / 1_000 - int(seconds)) < 60


async def test_a_message_that_is_not_understood_takes_no_other_with_it(board: CapacityBoard, redis: Redis) -> None:
    for name in ("r1", "r2", "r3"):
        await board.publish_report(report(name))
    await redis.set(board._reports + "r2", '{"replica_id": 7}')
    assert [line.replica_id for line in (await board.read()).replicas] == ["r1", "r3"]
    assert [one.replica_id for one in await board.read_reports()] == ["r1", "r3"]
    await redis.set(board._allotments + "r1", '{"window": "wide"}')
    assert await board.read_allotment("r1") is None
    await redis.set(board._record_key, "{")
    assert await board.read_record() == ControllerRecord()


async def test_a_controller_that_takes_over_goes_on_where_the_last_one_was(
    board: CapacityBoard, redis: Redis, fast: Settings, bench: Bench
) -> None:
    for _ in range(3):
        await bench.start(40)
    for number in range(4):
        # One that was shut, and may stay so by its second threshold.
        await board.publish_report(report(f"r{number}", online_running=8 if number == 3 else number))
    last = make_controller(redis, fast)
    allotments = await last.step()
    assert allotments["r3"].window == 0
    await board.publish_report(report("r3", online_running=6))
    heir = make_controller(redis, fast)
    assert await heir.step() == allotments == await last.step()


async def test_what_tenants_owe_each_other_outlives_the_controller(
    board: CapacityBoard, redis: Redis, fast: Settings, bench: Bench
) -> None:
    batch_id = await bench.start(40)
    shares = ShareRecord({MODEL: {"default": 2_048.0, "other": -90_000.0}}, {}, {batch_id: 0.0})
    await board.write_record(ControllerRecord(shares, SCHEMA_VERSION, 1))
    await board.publish_report(report("r1"))
    await make_controller(redis, fast).step()
    kept = (await board.read_record()).shares
    assert kept.debts == {MODEL: {"other": -90_000.0}}
    assert kept.seen == {batch_id: 0.0}
