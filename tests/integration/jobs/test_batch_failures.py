"""What goes wrong with one file or one batch: nothing hangs, nothing is left behind, the others go on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

from conserve.config import DEFAULT_TENANT
from conserve.jobs import flex_cleanup, lifecycle
from conserve.jobs.barrier import DiskBarrier
from conserve.jobs.batch import FileObject
from conserve.jobs.catalog import FileCatalog, FileRecord
from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.errors import ApiError, NotDurableError
from conserve.jobs.flex import FlexService
from conserve.jobs.queue import JobQueue
from tests.integration.bench import LONG_MS, MODEL, TIMEOUT_S, URL, Bench, make_input, stream


async def test_an_input_file_cut_short_does_not_hang_the_keeper(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    batch_id = await bench.start(3)
    path = bench.store.file_path((await bench.get(batch_id)).input_file_id)
    content = bench.store.storage.read(path)
    with bench.store.storage.create(path) as file:
        file.write(content.splitlines(keepends=True)[0])
    await bench.service.cancel_batch(batch_id)
    async with asyncio.timeout(TIMEOUT_S):
        for _ in range(3):
            await bench.keeper.run_once()
    assert (await bench.get(batch_id)).status == "cancelling"
    assert "ends before line 2" in "".join(capsys.readouterr())
    with bench.store.storage.create(path) as file:
        file.write(content)
    bench.now_s += 60
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, output) == ("cancelled", [])
    assert errors == {f"id-{i}": "batch_cancelled" for i in (1, 2, 3)}


async def test_a_step_that_hangs_is_given_up_and_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch_id = await bench.submit(make_input(1))

    async def hang(*_: object) -> bool:
        await asyncio.Event().wait()
        return True

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "_SLOW_STEP_LIMIT_S", 0.05)
        patch.setattr(JobQueue, "begin_enqueue", hang)
        async with asyncio.timeout(TIMEOUT_S):
            await bench.keeper.run_once()
    assert (await bench.get(batch_id)).status == "validating"
    bench.now_s += 60
    await bench.keeper.run_once()
    assert (await bench.get(batch_id)).status == "in_progress"


async def test_steps_of_others_that_hang_hold_up_neither_flex_nor_another_tenant(
    bench: Bench, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = {await bench.submit(make_input(1)) for _ in range(8)}
    begin = JobQueue.begin_enqueue

    async def hang(queue: JobQueue, batch_id: str, token: str) -> bool:
        if batch_id in hanging:
            await asyncio.Event().wait()
        return await begin(queue, batch_id, token)

    monkeypatch.setattr(JobQueue, "begin_enqueue", hang)
    monkeypatch.setattr(flex_cleanup, "_LINGER_MS", 0)
    service = FlexService(redis, bench.store, bench.settings, [MODEL])
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    loops = [asyncio.create_task(service.run()), asyncio.create_task(bench.keeper.run(0.01))]
    try:
        async with asyncio.timeout(TIMEOUT_S):
            asking = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, body))
            while not (claimed := await claim_flex(redis, bench)):
                await asyncio.sleep(0.01)
            await bench.finish(claimed)
            answer = await asking
            while await redis.exists(*bench.queue._keys.batch(claimed[0].batch_id)):
                await asyncio.sleep(0.01)
            other = bench.service.for_tenant("b")
            file = await other.upload_file("in.jsonl", "batch", stream(make_input(1)))
            batch_id = (await other.create_batch(file.id, URL, "24h")).id
            while (await other.get_batch(batch_id)).status != "in_progress":
                await asyncio.sleep(0.01)
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    assert answer["service_tier"] == "flex"


async def claim_flex(redis: Redis, bench: Bench) -> list[ClaimedRequest]:
    for batch_id in await redis.zrange(bench.queue._keys.flex, 0, -1):
        return await bench.queue.claim(batch_id, 1, LONG_MS, "a")
    return []


@pytest.mark.parametrize("step", ["expire", "freeze_cancelled", "reap"])
async def test_a_batch_that_redis_refuses_does_not_stop_the_round(
    bench: Bench, redis: Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    broken, good = await bench.start(1), await bench.start(1)
    namespace = bench.settings.jobs.namespace
    await redis.zadd(f"{namespace}:{{index}}:active", {broken: 1})  # First in the round.
    for batch_id in (broken, good):
        if step == "expire":
            await redis.hset(f"{namespace}:batch:{{{batch_id}}}", "expires_at_ms", "1")
        elif step == "freeze_cancelled":
            await bench.service.cancel_batch(batch_id)
        else:
            await bench.queue.claim(batch_id, 1, 1, "a")
    await bench.lapse()
    bench.now_s += 100
    # One that has not read yet when the batches expire, which nobody else changes.
    keeper = bench.new_keeper() if step == "expire" else bench.keeper
    real = getattr(JobQueue, step)
    calls: list[str] = []

    async def refuse_one(queue: JobQueue, batch_id: str) -> Any:
        calls.append(batch_id)
        if batch_id == broken:
            raise ResponseError("WRONGTYPE of a test")
        return await real(queue, batch_id)

    monkeypatch.setattr(JobQueue, step, refuse_one)
    await keeper.run_once()
    assert calls == [broken, good]
    assert "WRONGTYPE of a test" in "".join(capsys.readouterr())
    await keeper.run_once()
    assert calls.count(broken) == 1, "tried again only after a pause"
    bench.now_s += 0.6
    await keeper.run_once()
    assert calls.count(broken) == 2


async def test_an_outage_ends_the_round(bench: Bench, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        batch_id = await bench.start(1)
        await redis.hset(f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}", "expires_at_ms", "1")
    calls: list[str] = []

    async def break_off(_: JobQueue, batch_id: str) -> bool:
        calls.append(batch_id)
        raise RedisConnectionError("away")

    monkeypatch.setattr(JobQueue, "expire", break_off)
    with pytest.raises(RedisConnectionError):
        await bench.keeper.run_once()
    assert len(calls) == 1


def stored_files(bench: Bench) -> list[Path]:
    return [path for path in Path(bench.settings.state_dir).rglob("*") if path.name.startswith("file-")]


async def test_an_upload_that_cannot_be_recorded_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> FileObject:
        raise OutOfMemoryError("command not allowed when used memory > 'maxmemory'")

    monkeypatch.setattr(FileCatalog, "put", refuse)
    with pytest.raises(ApiError) as refused:
        await bench.service.upload_file("in.jsonl", "batch", stream(make_input(1)))
    assert refused.value.status == 503
    assert stored_files(bench) == []


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not known"])
async def test_an_upload_that_may_be_recorded_keeps_its_content(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    real = FileCatalog.put

    async def break_off(catalog: FileCatalog, *fields: Any, **named: Any) -> FileObject:
        if not recorded:
            raise RedisConnectionError("away")
        await real(catalog, *fields, **named)
        raise NotDurableError("not confirmed")

    async def record(*_: object) -> FileRecord | None:
        raise RedisConnectionError("away")

    with monkeypatch.context() as patch:
        patch.setattr(FileCatalog, "put", break_off)
        if not recorded:
            patch.setattr(FileCatalog, "record", record)
        with pytest.raises(ApiError) as refused:
            await bench.service.upload_file("in.jsonl", "batch", stream(make_input(1)))
    assert refused.value.status == 503
    assert len(stored_files(bench)) == 1
    assert len((await bench.service.list_files()).data) == int(recorded)


async def test_a_batch_that_was_not_acknowledged_does_not_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await bench.service.upload_file("in.jsonl", "batch", stream(make_input(2)))

    async def doubt(*_: object) -> None:
        raise NotDurableError("not confirmed")

    with monkeypatch.context() as patch:
        patch.setattr(DiskBarrier, "wait", doubt)
        with pytest.raises(ApiError) as refused:
            await bench.service.create_batch(file.id, URL, "24h")
    assert refused.value.status == 503
    (batch,) = (await bench.service.list_batches()).data
    assert batch.status == "cancelling"
    ended, output, errors = await bench.end(batch.id)
    assert (ended.status, output) == ("cancelled", [])
    assert errors == {"id-1": "batch_cancelled", "id-2": "batch_cancelled"}
    assert (await bench.service.delete_file(file.id)).deleted
