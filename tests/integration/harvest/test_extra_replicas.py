"""How many replicas are wanted for deadlines, from the watch to where replicas read it, on a real server."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.deadline_watch import DeadlineWatch
from conserve.jobs.capacity_store import CapacityStore
from conserve.jobs.queue import JobQueue
from tests.integration.bench import MODEL, Bench
from tests.integration.harvest.test_deadlines import report, see, start


@pytest.mark.parametrize(("allowed", "wanted"), [(0, 0), (2, 2)])
async def test_a_promise_that_would_be_broken_wants_as_many_as_are_allowed(
    redis: Redis, bench: Bench, board: CapacityBoard, fast: Settings, allowed: int, wanted: int
) -> None:
    raw = fast.model_dump()
    settings = Settings.model_validate(raw | {"harvest": raw["harvest"] | {"scale_for_deadlines": allowed}})
    kept = CapacityStore(redis, settings.jobs.namespace)
    watch = DeadlineWatch(board, JobQueue(redis, settings), kept, settings, [MODEL])
    await board.publish_report(report())
    await see(kept, 1_000.0)
    batch_id = await start(bench, "promised", 20, "10m")
    await watch.step()
    (summary,) = await bench.queue.active_summaries()
    assert summary.promised
    assert await board.read_extra_replicas(MODEL) == 0
    await see(kept, 0.5)
    watch._recorders[MODEL]._is_loaded = False
    assert (await watch.step())[batch_id].laxity_s < 0
    assert await board.read_extra_replicas(MODEL) == wanted
    await bench.finish(await bench.queue.claim(batch_id, 20, 60_000, "a"))
    await bench.keeper.run_once()
    await watch.step()
    assert await board.read_extra_replicas(MODEL) == 0
