"""A batch that is worked off shows in the metrics of the replica, of the controller and of the keeper."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.capacity_recorder import CapacityRecorder
from conserve.harvest.controller import HarvestController
from conserve.harvest.deadline_watch import DeadlineWatch
from conserve.harvest.harvester import Harvester
from conserve.jobs.capacity_store import CapacityStore
from conserve.jobs.files import FileStore
from conserve.jobs.lifecycle import BatchKeeper
from conserve.jobs.queue import JobQueue
from conserve.policy.harvest_rate import find_possible_rate
from conserve.telemetry import harvest_metrics, job_metrics
from conserve.telemetry.memory_recorder import MemoryRecorder
from tests.integration.bench import MODEL, Bench
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.fakes import FakeEngine
from tests.integration.harvest.test_deadlines import COSTS, START_MS, TBT_MS, report


async def test_a_batch_from_its_start_to_its_end(
    redis: Redis, bench: Bench, board: CapacityBoard, store: FileStore, engine: FakeEngine, fast: Settings
) -> None:
    recorder = MemoryRecorder()
    queue = JobQueue(redis, fast)
    controller = HarvestController(board, queue, fast.harvest, recorder=recorder)
    watch = DeadlineWatch(board, queue, CapacityStore(redis, fast.jobs.namespace), fast, [MODEL], recorder)
    keeper = BatchKeeper(redis, store, fast, [MODEL], recorder=recorder)
    harvester = Harvester(engine, queue, store, board, fast, "r1", MODEL, recorder=recorder)
    batch_id = await bench.start(12)
    engine.gate.clear()

    window = fast.harvest.max_window

    async def is_full() -> bool:
        # A report has the window of the one before.
        return engine.running == window == recorder.value(harvest_metrics.OFFLINE_WINDOW)

    async def is_done() -> bool:
        return recorder.value(job_metrics.BATCH_REQUESTS, "completed") == 12

    async with running(controller.run()), running(harvester.run()):
        await wait_until(is_full)
        await watch.step()
        assert recorder.value(job_metrics.QUEUE_REQUESTS, "default", "leased") == window
        assert recorder.value(job_metrics.QUEUE_REQUESTS, "default", "ready") == 12 - window
        assert recorder.value(job_metrics.BATCHES, "in_progress") == 1
        assert recorder.value(job_metrics.REPLICAS, MODEL) == 1
        assert recorder.value(harvest_metrics.HARVEST_ALONE) == 0
        assert recorder.observations(job_metrics.CONTROLLER_ROUND)
        engine.gate.set()
        await wait_until(is_done)

        async def is_ended() -> bool:
            await keeper.run_once()
            return recorder.value(job_metrics.BATCHES_ENDED, "completed") == 1

        await wait_until(is_ended)
    await keeper.close()
    assert recorder.value(job_metrics.ATTEMPTS_ENDED, "engine_fault") == 0
    assert recorder.value(job_metrics.LEASES_EXPIRED) == 0
    assert (await bench.get(batch_id)).status == "completed"


async def test_stranded_capacity_is_what_could_be_done_and_what_was(redis: Redis, settings: Settings) -> None:
    memory = MemoryRecorder()
    recorder = CapacityRecorder(CapacityStore(redis, settings.jobs.namespace), MODEL, TBT_MS, memory)
    for number, tokens in enumerate((100, 160, 200)):
        recorder.observe([report(tokens, costs=COSTS)], START_MS + 2_000 * number, has_work=True)
    possible = find_possible_rate(COSTS, 4, 0, TBT_MS)
    assert memory.value(job_metrics.STRANDED_USED, MODEL) == 100
    assert memory.value(job_metrics.STRANDED_SEEN, MODEL) == pytest.approx(4 * possible)
