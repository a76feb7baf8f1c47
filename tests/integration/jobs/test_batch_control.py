"""Pause, resume, priority."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from conserve.harvest.controller import demands_of
from conserve.jobs.errors import ApiError
from conserve.policy.ordering import order_jobs
from tests.integration.bench import LONG_MS, URL, Bench, make_input, stream


async def test_of_a_paused_batch_nothing_more_is_claimed_until_it_goes_on(bench: Bench) -> None:
    batch_id = await bench.start(3)
    (one,) = await bench.queue.claim(batch_id, 1, LONG_MS, "a")
    paused = await bench.service.pause_batch(batch_id)
    assert paused.status == "in_progress"
    assert paused.paused_at is not None
    assert await bench.service.pause_batch(batch_id) == paused, "again changes nothing"
    assert demands_of(await bench.queue.active_summaries()) == []
    assert await bench.queue.claim(batch_id, 3, LONG_MS, "b") == []
    assert not (await bench.queue.renew(batch_id, {one.line: one.fence}, LONG_MS)).cancelled, "what runs goes on"
    await bench.finish([one])
    for _ in range(2):
        assert (await bench.service.resume_batch(batch_id)).paused_at is None
    assert [demand.ready for demand in demands_of(await bench.queue.active_summaries())] == [2]
    await bench.finish(await bench.queue.claim(batch_id, 3, LONG_MS, "b"))
    batch, output, _ = await bench.end(batch_id)
    assert (batch.status, len(output)) == ("completed", 3)


async def test_a_claim_whose_answer_was_lost_is_answered_again_though_the_batch_was_paused(bench: Bench) -> None:
    batch_id = await bench.start(3)
    claimed = await bench.queue.claim(batch_id, 2, LONG_MS, "a", "token")
    await bench.service.pause_batch(batch_id)
    assert await bench.queue.claim(batch_id, 2, LONG_MS, "a", "token") == claimed
    assert await bench.queue.claim(batch_id, 2, LONG_MS, "a", "other") == []
    await bench.service.cancel_batch(batch_id)
    assert await bench.queue.claim(batch_id, 2, LONG_MS, "a", "token") == []


async def test_leases_of_a_paused_batch_run_out(bench: Bench) -> None:
    batch_id = await bench.start(1)
    await bench.queue.claim(batch_id, 1, 1, "a")
    await bench.service.pause_batch(batch_id)
    await bench.lapse()
    bench.now_s += 100
    await bench.keeper.run_once()
    (summary,) = await bench.queue.active_summaries()
    assert (summary.paused, summary.ready, summary.leased) == (True, 1, 0)


async def test_a_batch_is_paused_before_it_begins(bench: Bench) -> None:
    batch_id = await bench.submit(make_input(1))
    assert (await bench.service.pause_batch(batch_id)).status == "validating"
    await bench.keeper.run_once()
    batch = await bench.get(batch_id)
    assert batch.status == "in_progress"
    assert batch.paused_at is not None
    assert await bench.queue.claim(batch_id, 1, LONG_MS, "a") == []


async def test_the_last_result_ends_a_paused_batch(bench: Bench) -> None:
    batch_id = await bench.start(1)
    claimed = await bench.queue.claim(batch_id, 1, LONG_MS, "a")
    await bench.service.pause_batch(batch_id)
    await bench.finish(claimed)
    batch, output, _ = await bench.end(batch_id)
    assert (batch.status, output, batch.paused_at) == ("completed", ["id-1"], None)


async def test_a_paused_batch_is_cancelled_and_expires(bench: Bench, redis: Redis) -> None:
    cancelled, expired = [await bench.start(1) for _ in range(2)]
    for batch_id in (cancelled, expired):
        await bench.service.pause_batch(batch_id)
    assert (await bench.service.cancel_batch(cancelled)).paused_at is None
    key = f"{bench.settings.jobs.namespace}:batch:{{{expired}}}"
    await redis.hset(key, "expires_at_ms", "1")  # type: ignore[misc]
    for batch_id, status in ((cancelled, "cancelled"), (expired, "expired")):
        batch, _, errors = await bench.end(batch_id)
        assert (batch.status, batch.paused_at, errors) == (status, None, {"id-1": f"batch_{status}"})


async def test_what_has_ended_is_neither_paused_nor_changed(bench: Bench) -> None:
    batch_id = await bench.start(1)
    await bench.service.cancel_batch(batch_id)
    for ended in (False, True):
        if ended:
            await bench.end(batch_id)
        status = "cancelled" if ended else "cancelling"
        for call, code in (
            (bench.service.pause_batch(batch_id), "batch_not_pausable"),
            (bench.service.resume_batch(batch_id), "batch_not_resumable"),
            (bench.service.prioritise_batch(batch_id, 1), "batch_not_changeable"),
        ):
            with pytest.raises(ApiError, match=f"'{status}'") as refused:
                await call
            assert (refused.value.status, refused.value.code) == (409, code)
    for call in (bench.service.pause_batch("batch_0123456789"), bench.service.resume_batch("nonsense")):
        with pytest.raises(ApiError) as refused:
            await call
        assert refused.value.status == 404


async def test_a_batch_of_higher_priority_goes_first(bench: Bench) -> None:
    file = await bench.service.upload_file("in.jsonl", "batch", stream(make_input(1)))
    made = [await bench.service.create_batch(file.id, URL, "24h", priority=priority) for priority in (0, -7, 100)]
    assert [batch.priority for batch in made] == [0, -7, 100]
    first, second, third = (batch.id for batch in made)
    await bench.keeper.run_once()

    async def order() -> list[str]:
        return [job.batch_id for job in order_jobs(demands_of(await bench.queue.active_summaries()))]

    assert await order() == [third, first, second]
    assert (await bench.service.prioritise_batch(second, 3)).priority == 3
    assert await order() == [third, second, first]
    for wrong in (-101, 101):
        with pytest.raises(ApiError, match="between -100 and 100"):
            await bench.service.prioritise_batch(second, wrong)
        with pytest.raises(ApiError, match="between -100 and 100"):
            await bench.service.create_batch(file.id, URL, "24h", priority=wrong)
    assert (await bench.get(second)).priority == 3
