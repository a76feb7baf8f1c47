"""What is read again of a batch is what somebody reads who sees it for the first time."""

from __future__ import annotations

from conserve.jobs.batch import BatchStatus
from conserve.jobs.queue import JobQueue
from tests.integration.bench import LONG_MS, Bench, make_input


async def test_what_is_remembered_of_a_batch_is_what_is_there(bench: Bench) -> None:
    async def check() -> None:
        seen = await bench.queue.active_summaries()
        assert seen == await JobQueue(bench.redis, bench.settings).active_summaries()
        assert seen == await bench.queue.active_summaries([one.batch_id for one in seen])

    first = await bench.submit(make_input(3))
    await check()
    await bench.keeper.run_once()
    await check()
    second = await bench.start(2)
    await check()
    claimed = await bench.queue.claim(first, 2, LONG_MS, "a")
    await bench.finish(claimed[:1])
    await bench.service.pause_batch(second)
    await bench.queue.prioritise(second, 7)
    await check()
    summaries = {one.batch_id: one for one in await bench.queue.active_summaries()}
    assert (summaries[first].completed, summaries[first].leased, summaries[first].ready) == (1, 1, 1)
    assert summaries[first].tokens_used > 0
    assert (summaries[second].paused, summaries[second].priority) == (True, 7)
    await bench.service.cancel_batch(first)
    await check()
    assert (await bench.queue.active_summaries([first]))[0].status is BatchStatus.CANCELLING


async def test_a_batch_that_is_gone_is_left_out(bench: Bench) -> None:
    first, second = await bench.start(1), await bench.start(1)
    assert len(await bench.queue.active_summaries()) == 2
    await bench.redis.delete(bench.queue._keys.batch(first).batch)
    assert [one.batch_id for one in await bench.queue.active_summaries()] == [second]
    assert await bench.queue.active_summaries([first]) == []
    assert await bench.queue.active_summaries([]) == []


async def test_how_many_requests_there_are_is_known_once_a_batch_has_been_validated(bench: Bench) -> None:
    batch_id = await bench.submit(make_input(2))
    assert [(one.total, one.model) for one in await bench.queue.active_summaries()] == [(0, None)]
    await bench.keeper.run_once()
    assert [(one.total, one.model) for one in await bench.queue.active_summaries([batch_id])] == [(2, "model-a")]
