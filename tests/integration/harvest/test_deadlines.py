"""What could be harvested is recorded, ends are predicted, and late batches rise, on a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.capacity_recorder import CapacityRecorder
from conserve.harvest.controller import HarvestController
from conserve.harvest.deadline_watch import DeadlineWatch
from conserve.harvest.harvester import Harvester
from conserve.harvest.messages import CapacityReport
from conserve.jobs.capacity_store import CapacityStore, Watched
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from conserve.policy.allotment import Allotment, JobShare
from conserve.policy.capacity import INTERVAL_S
from conserve.policy.harvest_rate import UNPROVEN_SHARE, IterationCosts, find_possible_rate
from tests.integration.bench import LONG_MS, MODEL, Bench, make_line
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.fakes import FakeEngine

COSTS = IterationCosts(overhead_ms=20.0, prompt_token_ms=0.1, decode_ms=1.0)
TBT_MS = 100.0
START_MS = 1_800_000_000_000
FIRST = START_MS // 300_000

Make = Callable[[FakeEngine, str], Harvester]


def report(tokens: int = 0, replica_id: str = "r1", **changes: Any) -> CapacityReport:
    known = {"model": MODEL, "state": "serving", "window": 4, "offline_output_tokens": tokens}
    return CapacityReport.model_validate({"replica_id": replica_id, **known, **changes})


@pytest.fixture
def kept(redis: Redis, settings: Settings) -> CapacityStore:
    return CapacityStore(redis, settings.jobs.namespace)


@pytest.fixture
def recorder(kept: CapacityStore) -> CapacityRecorder:
    return CapacityRecorder(kept, MODEL, TBT_MS)


async def test_what_is_harvested_counts_while_work_waits(recorder: CapacityRecorder) -> None:
    recorder.observe([report(100), report(0, "r2")], START_MS, has_work=True)
    assert recorder.history.seen_s == 0, "where the counters stood before is not known"
    recorder.observe([report(160), report(40, "r2")], START_MS + 2_000, has_work=True)
    recorder.observe([report(10), report(50, "r2")], START_MS + 4_000, has_work=True)
    # The second replica did 50 in all; the first one was started anew after 60, and did 10 since.
    assert recorder.history.intervals == {FIRST: (120.0, 4.0)}


async def test_without_work_it_is_what_the_latency_model_says_for_as_much_as_that_is_worth(
    recorder: CapacityRecorder,
) -> None:
    known = report(costs=COSTS)
    recorder.observe([known], START_MS, has_work=False)
    recorder.observe([known], START_MS + 2_000, has_work=False)
    possible = find_possible_rate(COSTS, 4, 0, TBT_MS)
    assert recorder.history.rate(FIRST) == pytest.approx(UNPROVEN_SHARE * possible)
    # For five minutes there is work, and a tenth of that is harvested.
    for number in range(1, 200):
        done = report(round(0.1 * possible * 2 * number), costs=COSTS)
        recorder.observe([done], START_MS + 2_000 + 2_000 * number, has_work=True)
    assert recorder.proof.share == pytest.approx(0.1, rel=0.05)
    later_ms = START_MS + 2_000 + 2_000 * 200
    recorder.observe([done], later_ms, has_work=False)
    number = later_ms // 300_000
    tokens, seconds = recorder.history.intervals[number]
    assert tokens / seconds == pytest.approx(0.1 * possible, rel=0.05)


async def test_where_nothing_is_known_nothing_is_recorded(recorder: CapacityRecorder) -> None:
    for second in range(0, 20, 2):
        recorder.observe([report(second)], START_MS + 1_000 * second, has_work=False)
    for second in range(20, 40, 2):
        recorder.observe([], START_MS + 1_000 * second, has_work=True)
    assert recorder.history.intervals == {}


async def test_who_takes_over_goes_on_where_the_last_one_stopped(
    recorder: CapacityRecorder, kept: CapacityStore
) -> None:
    await recorder.load()
    recorder.observe([report(100)], START_MS, has_work=True)
    recorder.observe([report(160)], START_MS + 2_000, has_work=True)
    await recorder.flush()
    recorder.observe([report(170)], START_MS + 4_000, has_work=True)  # It ends before this is written.
    heir = CapacityRecorder(kept, MODEL, TBT_MS)
    await heir.load()
    heir.observe([report(400)], START_MS + 22_000, has_work=True)
    await heir.flush()
    assert (await kept.read_history(MODEL)).intervals == {FIRST: (300.0, 22.0)}


async def test_of_a_long_absence_nothing_is_known(recorder: CapacityRecorder) -> None:
    recorder.observe([report(100)], START_MS, has_work=True)
    later_ms = START_MS + round(2 * INTERVAL_S * 1_000)
    recorder.observe([report(9_000)], later_ms, has_work=True)
    recorder.observe([report(9_010)], later_ms + 1_000, has_work=True)
    assert recorder.history.intervals == {FIRST + 2: (10.0, 1.0)}


async def test_what_is_too_old_goes_from_redis_too(kept: CapacityStore, redis: Redis, settings: Settings) -> None:
    old = FIRST - 9 * 288
    await kept.write(MODEL, {old: (1.0, 1.0), FIRST - 288: (2.0, 2.0)}, [], Watched(at_ms=START_MS))
    recorder = CapacityRecorder(kept, MODEL, TBT_MS)
    await recorder.load()
    recorder.observe([report(5)], START_MS + 1_000, has_work=True)
    await recorder.flush()
    assert sorted((await kept.read_history(MODEL)).intervals) == [FIRST - 288, FIRST]
    assert await redis.ttl(f"{settings.jobs.namespace}:{{seen}}:capacity:{MODEL}") > 8 * 86_400


# Batches.


def make_lines(name: str, count: int) -> bytes:
    return b"".join(json.dumps(make_line(f"{name}-{number}")).encode() + b"\n" for number in range(count))


async def start(bench: Bench, name: str, count: int, window: str = "24h", priority: int = 0) -> str:
    batch_id = await bench.submit(make_lines(name, count), window)
    await bench.service.prioritise_batch(batch_id, priority)
    await bench.keeper.run_once()
    return batch_id


@pytest.fixture
def watch(board: CapacityBoard, redis: Redis, kept: CapacityStore, fast: Settings) -> DeadlineWatch:
    return DeadlineWatch(board, JobQueue(redis, fast), kept, fast, [MODEL])


async def see(kept: CapacityStore, rate: float, intervals: int = 12) -> float:
    """Puts up a capacity of the latest hour. Returns the time, Unix seconds."""
    now_ms = await kept.read_now_ms()
    now = now_ms // 300_000
    seen = dict.fromkeys(range(now - intervals, now), (rate * INTERVAL_S, INTERVAL_S))
    await kept.write(MODEL, seen, [], Watched(at_ms=now_ms))
    return now_ms / 1000


async def test_the_end_is_predicted_from_what_is_left_and_what_was_seen(
    bench: Bench, watch: DeadlineWatch, kept: CapacityStore
) -> None:
    first = await start(bench, "first", 20)
    assert (await watch.step()) == {}
    assert (await bench.get(first)).predicted_end_at is None
    watch._recorders[MODEL]._is_loaded = False
    now_s = await see(kept, 10.0)
    await watch.step()
    (summary,) = await bench.queue.active_summaries()
    end_at = (await bench.get(first)).predicted_end_at
    assert end_at == pytest.approx(now_s + summary.work_tokens / 10, abs=5)
    await bench.finish(await bench.queue.claim(first, 20, LONG_MS, "a"))
    await bench.keeper.run_once()
    await watch.step()
    assert (await bench.get(first)).predicted_end_at is None


async def test_batches_end_in_the_order_in_which_they_go(
    bench: Bench, watch: DeadlineWatch, kept: CapacityStore
) -> None:
    low = await start(bench, "low", 20, "1h")
    high = await start(bench, "high", 20, "24h", priority=1)
    await see(kept, 20.0)
    outlooks = await watch.step()
    assert (outlooks[high].end_s or 0) < (outlooks[low].end_s or 0)
    assert watch.urgencies == {}
    await bench.service.pause_batch(high)
    assert set(await watch.step()) == {low}


async def test_a_batch_that_will_be_late_is_urgent_and_goes_first(
    bench: Bench, watch: DeadlineWatch, kept: CapacityStore, board: CapacityBoard, fast: Settings
) -> None:
    controller = HarvestController(board, bench.queue, fast.harvest, None, lambda: watch.urgencies)
    usual = await start(bench, "usual", 2, "24h", priority=9)
    late = await start(bench, "late", 20, "10m")
    work_tokens = {batch.batch_id: batch.work_tokens for batch in await bench.queue.active_summaries()}[late]
    await see(kept, work_tokens / 570)
    outlooks = await watch.step()
    assert outlooks[late].urgency == pytest.approx(0.8, abs=0.05)
    assert outlooks[usual].urgency == 0.0
    await board.publish_report(report())
    share = 0.05 * outlooks[late].urgency
    expected = Allotment(4, (JobShare(usual, 2), JobShare(late, 14)), (JobShare(late, 4),), 1, share)
    assert (await controller.step())["r1"] == expected
    assert await board.read_allotment("r1") == expected


async def test_a_batch_that_cannot_make_it_keeps_one_place(
    bench: Bench, watch: DeadlineWatch, kept: CapacityStore, board: CapacityBoard, fast: Settings
) -> None:
    controller = HarvestController(board, bench.queue, fast.harvest, None, lambda: watch.urgencies)
    usual = await start(bench, "usual", 2, "24h", priority=9)
    lost = await start(bench, "lost", 20, "10m")
    await see(kept, 2.0)
    outlooks = await watch.step()
    assert outlooks[lost].laxity_s < 0
    assert outlooks[usual].urgency == 0.0
    await board.publish_report(report())
    assert (await controller.step())["r1"].late == (JobShare(lost, 1),)


async def test_late_requests_run_first_up_to_their_share(
    bench: Bench, board: CapacityBoard, make_harvester: Make, engine: FakeEngine, fast: Settings
) -> None:
    await start(bench, "usual", 10, priority=9)
    late = await start(bench, "late", 10)
    controller = HarvestController(board, bench.queue, fast.harvest, None, lambda: {late: 0.5})
    engine.gate.clear()

    async def full() -> bool:
        return engine.running == 4

    async with running(controller.run()), running(make_harvester(engine, "r1").run()):
        await wait_until(full)
        assert sorted(content.split("-")[0] for content in engine.asked) == 2 * ["say late"] + 2 * ["say usual"]
        engine.gate.set()


async def test_on_the_floor_late_requests_run_although_the_window_is_shut(
    redis: Redis, store: FileStore, board: CapacityBoard, engine: FakeEngine, fast: Settings
) -> None:
    raw = fast.model_dump()
    settings = Settings.model_validate(raw | {"harvest": raw["harvest"] | {"deadline_floor": 0.25}})
    bench = Bench(redis, store, settings)
    await start(bench, "usual", 5, priority=9)
    late = await start(bench, "late", 5)
    urgencies = {late: 1.0}
    controller = HarvestController(board, bench.queue, settings.harvest, None, lambda: urgencies)
    engine.online_running = 99
    engine.gate.clear()
    harvester = Harvester(engine, bench.queue, store, board, settings, "r1", MODEL)

    async def granted() -> bool:
        return engine.floor == 0.25 and engine.running == 1

    async def shut() -> bool:
        return engine.floor == 0.0 and engine.running == 0

    async def some_done() -> bool:
        return len(engine.asked) > 3

    async with running(controller.run()), running(harvester.run()):
        await wait_until(granted)
        engine.gate.set()
        await wait_until(some_done)
        urgencies.clear()
        await wait_until(shut)
    assert engine.most_running == 1
    assert all(content.startswith("say late") for content in engine.asked)


async def test_without_a_floor_the_window_stays_shut(
    bench: Bench, board: CapacityBoard, fast: Settings, make_harvester: Make, engine: FakeEngine
) -> None:
    raw = fast.model_dump()
    settings = Settings.model_validate(raw | {"harvest": raw["harvest"] | {"deadline_floor": 0.0}})
    late = await start(bench, "late", 5)
    controller = HarvestController(board, bench.queue, settings.harvest, None, lambda: {late: 1.0})
    engine.online_running = 99

    async def allotted() -> bool:
        return await board.read_allotment("r1") == Allotment(0)

    async with running(controller.run()), running(make_harvester(engine, "r1").run()):
        await wait_until(allotted)
    assert engine.asked == []
