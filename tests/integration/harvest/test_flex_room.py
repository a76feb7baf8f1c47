"""The room that flex requests take up: free again after an outage, without their front, and for batches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from conserve.config import DEFAULT_TENANT, Settings
from conserve.jobs import embedded, flex_requests, flex_waiters
from conserve.jobs.connection import connect
from conserve.jobs.errors import ApiError
from conserve.jobs.files import FileStore
from conserve.jobs.flex import FlexService
from conserve.jobs.keys import Keys
from conserve.jobs.lifecycle import BatchKeeper
from conserve.jobs.queue import JobQueue
from tests.integration.bench import MODEL, TIMEOUT_S, URL, Bench, make_input, stream
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.test_flex import ask, change, clean_up, wait_until_nothing_is_left


def make_service(redis: Redis, settings: Settings) -> FlexService:
    return FlexService(redis, FileStore(settings.files_url), settings, [MODEL])


async def wait_for(redis: Redis, settings: Settings, count: int) -> None:
    """Until so many requests take up room."""

    async def are_there() -> bool:
        return await redis.zcard(Keys(settings.jobs.namespace).flex) == count

    await wait_until(are_there)


async def abandon(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def lose(redis: Redis, settings: Settings) -> None:
    """A front begins to wait for a request, and is gone without a word."""
    service = make_service(redis, settings)
    service._waiters.leave = lambda batch_id: None  # type: ignore[method-assign] # As if its process were killed.
    async with running(service.run()):
        waiting = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("x")))
        await wait_for(redis, settings, 1)

        async def is_recorded() -> bool:
            return len(await JobQueue(redis, settings).active_summaries()) == 1

        # It takes up room before it is there; one that is lost in between is forgotten only after a minute.
        await wait_until(is_recorded)
    await abandon(waiting)


def spy_on_failures(service: FlexService) -> asyncio.Event:
    """Set once the front could not let go of a request."""
    failed = asyncio.Event()
    let_go = service._requests.let_go

    async def spy(batch_ids: Collection[str]) -> None:
        try:
            await let_go(batch_ids)
        except (RedisError, OSError):
            failed.set()
            raise

    service._requests.let_go = spy  # type: ignore[method-assign]
    return failed


async def test_after_an_outage_there_is_room_again(tmp_path: Path) -> None:
    settings = Settings.model_validate({"state_dir": tmp_path, "flex": {"max_waiting": 1}})
    redis = await connect(settings)
    try:
        service = make_service(redis, settings)
        has_failed = spy_on_failures(service)
        async with running(service.run()):
            waiting = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("x")))
            await wait_for(redis, settings, 1)
            process = psutil.Process(int((tmp_path / "redis" / "redis.pid").read_text()))
            process.kill()
            process.wait(TIMEOUT_S)
            with pytest.raises(ApiError) as gone:
                await waiting
            assert gone.value.status == 503
            async with asyncio.timeout(TIMEOUT_S):
                await has_failed.wait()
            await asyncio.to_thread(embedded.ensure_running, tmp_path)
            await wait_for(redis, settings, 0)
            again = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("x")))
            await wait_for(redis, settings, 1)
            await abandon(again)
            await wait_for(redis, settings, 0)
    finally:
        await redis.aclose()
        assert embedded.stop(tmp_path)


async def test_a_request_that_redis_did_not_take_keeps_no_room(
    redis: Redis, fast: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(redis, fast)
    run = service._requests._scripts.run

    async def fail(name: str, *args: Any) -> Any:
        if name == "create":
            raise RedisError("something else")
        return await run(name, *args)

    monkeypatch.setattr(service._requests._scripts, "run", fail)
    with pytest.raises(RedisError):
        await service.answer(DEFAULT_TENANT, URL, ask("x"))
    await wait_for(redis, fast, 0)


async def test_a_front_that_is_gone_keeps_no_room(redis: Redis, fast: Settings) -> None:
    settings = change(fast, flex={"max_waiting": 1}, jobs=fast.jobs.model_dump() | {"lease_ms": 300})
    await lose(redis, settings)
    service = make_service(redis, settings)
    with pytest.raises(ApiError, match="1 flex requests are waiting"):
        await service.answer(DEFAULT_TENANT, URL, ask("x"))
    keeper = BatchKeeper(redis, FileStore(settings.files_url), settings, [MODEL])
    async with running(keeper.run(0.02)):
        await wait_for(redis, settings, 0)
        # By the same keeper: what one that is stopped was deleting is taken up again only after a minute.
        await wait_until_nothing_is_left(redis, settings)


async def test_requests_that_are_waited_for_stay(redis: Redis, fast: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_waiters, "LONGEST_PERIOD_S", 0.02)
    service = make_service(redis, fast)
    bench = Bench(redis, FileStore(fast.files_url), fast)
    key = Keys(fast.jobs.namespace).flex
    async with running(service.run()):
        waiting = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("x")))
        await wait_for(redis, fast, 1)
        (batch_id,) = await redis.zrange(key, 0, -1)
        await redis.zadd(key, {batch_id: 1})  # Silent since long ago.

        async def is_attended_to() -> bool:
            return float(await redis.zscore(key, batch_id)) > 1

        await wait_until(is_attended_to)
        bench.now_s += 100
        await bench.keeper.run_once()
        assert await redis.zcard(key) == 1
        await abandon(waiting)
        await wait_for(redis, fast, 0)
    await clean_up(redis, fast)


async def test_after_its_start_a_keeper_gives_fronts_a_lease_period(redis: Redis, fast: Settings) -> None:
    await lose(redis, fast)
    key = Keys(fast.jobs.namespace).flex
    (batch_id,) = await redis.zrange(key, 0, -1)
    await redis.zadd(key, {batch_id: 1})  # Silent since long ago.
    bench = Bench(redis, FileStore(fast.files_url), fast)
    await bench.keeper.run_once()
    assert await redis.zcard(key) == 1
    bench.now_s += bench.lease_s
    await bench.keeper.run_once()
    assert await redis.zcard(key) == 0
    assert (await bench.queue.active_summaries())[0].let_go_at_ms is not None
    await clean_up(redis, fast)


async def test_a_goodbye_that_came_before_its_request_is_made_up_for(redis: Redis, fast: Settings) -> None:
    service = make_service(redis, fast)
    bench = Bench(redis, FileStore(fast.files_url), fast)
    run = service._requests._scripts.run

    async def be_overtaken(name: str, keys: Any, args: Any) -> Any:
        await service._requests.let_go([keys.batch.partition("{")[2].rstrip("}")])
        return await run(name, keys, args)

    service._requests._scripts.run = be_overtaken  # type: ignore[method-assign]
    waiting = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("x")))

    async def is_there() -> bool:
        return len(await bench.queue.active_summaries()) == 1

    await wait_until(is_there)
    bench.now_s += 100
    await bench.keeper.run_once()
    assert (await bench.queue.active_summaries())[0].let_go_at_ms is not None
    await abandon(waiting)
    await clean_up(redis, fast)


async def test_a_front_learns_that_its_request_was_given_up(redis: Redis, fast: Settings) -> None:
    service = make_service(redis, fast)
    async with running(service.run()):
        waiting = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("x")))
        await wait_for(redis, fast, 1)
        await service._requests.let_go(await redis.zrange(Keys(fast.jobs.namespace).flex, 0, -1))
        with pytest.raises(ApiError, match="Try again") as lost:
            await waiting
        assert (lost.value.status, lost.value.retry_after_s) == (503, 1)
    await clean_up(redis, fast)


async def test_abandoned_requests_count_for_no_batch(
    redis: Redis, fast: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = change(fast, jobs=fast.jobs.model_dump() | {"max_active_batches": 1})
    monkeypatch.setattr(flex_requests, "LEAST_OVER", 2)
    monkeypatch.setattr(flex_requests, "OVER_FOR_EACH_WAITING", 0)
    service = make_service(redis, settings)
    bench = Bench(redis, FileStore(settings.files_url), settings)
    for _ in range(2):
        waiting = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("x")))
        await wait_for(redis, settings, 1)
        await abandon(waiting)
        await wait_for(redis, settings, 0)
    assert (await bench.queue.ledger.used(DEFAULT_TENANT)).flex == 0
    file = await bench.service.upload_file("in.jsonl", "batch", stream(make_input(1)))
    assert (await bench.service.create_batch(file.id, URL, "24h")).status == "validating"
    with pytest.raises(ApiError, match="2 that are over") as full:
        await service.answer(DEFAULT_TENANT, URL, ask("x"))
    assert (full.value.status, full.value.code) == (429, "resource_unavailable")
    with pytest.raises(ApiError) as refused:
        await bench.service.create_batch(file.id, URL, "24h")
    assert refused.value.code == "too_many_batches"


async def test_chunks_that_come_after_the_deletion_leave_nothing_behind(redis: Redis, fast: Settings) -> None:
    service = make_service(redis, fast)
    bench = Bench(redis, FileStore(fast.files_url), fast)
    keys = Keys(fast.jobs.namespace)
    async with running(service.run()):
        chunks = service.stream(DEFAULT_TENANT, URL, ask("x"))
        listening = asyncio.create_task(anext(chunks))
        await wait_for(redis, fast, 1)
        (batch_id,) = await redis.zrange(keys.flex, 0, -1)
        (claimed,) = await bench.queue.claim(batch_id, 1, 60_000, "a")
        writer = bench.queue.make_chunk_writer()
        take = writer.begin(claimed)
        take({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "one"}}]})
        await writer.flush()
        assert (await listening)["choices"][0]["delta"]["content"] == "one"
        take({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": " two"}}]})
        await chunks.aclose()
        await wait_for(redis, fast, 0)
        await bench.queue.release(batch_id, {1: claimed.fence})
        await clean_up(redis, fast)
        await writer.flush()
    assert await redis.exists(*keys.batch(batch_id)) == 0
