"""Data as version 1 of the schema had them are taken over, wholly, and only when nobody is at work on them.

`schema_1.json` is what the program of that version has written: a batch of six requests of which one is done, one is
leased and one was given back after a failure; a batch that has ended; one that is to be validated; one that is being
cancelled while a request is leased; and one with a lease that lasts.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.batch import BatchStatus, RequestState
from conserve.jobs.catalog import FileCatalog
from conserve.jobs.clock import read_server_ms
from conserve.jobs.connection import connect
from conserve.jobs.errors import UnsuitableServerError
from conserve.jobs.keys import SCHEMA_VERSION, Keys
from conserve.jobs.queue import JobQueue

WRITTEN = Path(__file__).with_name("schema_1.json")
RUNNING, ENDED, NEW, CANCELLED, LEASED = (f"batch_{number:032x}" for number in range(1, 6))
LONG_MS = 60_000


@pytest.fixture
async def old(redis: Redis, settings: Settings) -> Keys:
    """The data, in the namespace of the test, with the lease of the last batch over like the others."""
    keys = Keys(settings.jobs.namespace)
    await redis.delete(keys.schema)
    for name, entry in json.loads(WRITTEN.read_text()).items():
        key, value = name.replace("old:", f"{settings.jobs.namespace}:", 1), entry["value"]
        await write(redis, key, entry["type"], value)
    await redis.zadd(keys.batch(LEASED).leases, {"1": 1})
    return keys


async def write(redis: Any, key: str, kind: str, value: Any) -> None:
    match kind:
        case "string":
            await redis.set(key, value)
        case "hash":
            await redis.hset(key, mapping=value)
        case "list":
            await redis.rpush(key, *value)
        case "zset":
            await redis.zadd(key, dict(value))


async def open_queue(settings: Settings) -> tuple[Redis, JobQueue]:
    client = await connect(settings)
    return client, JobQueue(client, settings)


async def test_batches_of_the_version_before_go_on(redis: Redis, settings: Settings, old: Keys) -> None:
    client, queue = await open_queue(settings)
    try:
        assert await redis.get(old.schema) == SCHEMA_VERSION
        states = await queue.states(RUNNING, range(1, 7))
        assert states == {1: RequestState.COMPLETED} | dict.fromkeys(range(2, 7), RequestState.READY)
        claimed = await queue.claim(RUNNING, 10, LONG_MS, "new", "t")
        assert [(one.line, one.offset, one.length, one.attempt) for one in claimed] == [
            (2, 10, 9, 1),
            (3, 20, 9, 2),
            (4, 30, 9, 1),
            (5, 40, 9, 1),
            (6, 50, 9, 1),
        ]
        assert await queue.release(RUNNING, {one.line: one.fence for one in claimed}) == 5
        assert [one.line for one in await queue.claim(LEASED, 10, LONG_MS, "new", "t")] == [1, 2]
        assert await queue.freeze_cancelled(CANCELLED), "nothing is leased of it any more"
        assert {one.batch_id for one in await queue.active_summaries()} == {RUNNING, NEW, CANCELLED, LEASED}
        assert await queue.begin_enqueue(NEW, "v")
    finally:
        await client.aclose()


async def test_what_has_ended_is_there_and_is_forgotten_in_time(redis: Redis, settings: Settings, old: Keys) -> None:
    client, queue = await open_queue(settings)
    try:
        ended = await queue.get(ENDED)
        assert ended is not None
        assert (ended.status, ended.request_counts.completed) == (BatchStatus.COMPLETED, 2)
        assert {one.id for one in (await queue.page(None, 20)).data} == {RUNNING, ENDED, NEW, CANCELLED, LEASED}  # type: ignore[union-attr]
        assert await redis.zrange(old.ended_batches, 0, -1) == [ENDED]
        assert set(await queue.results(ENDED)) == {1, 2}
        assert await redis.lrange(old.batch(ENDED).settled, 0, -1) == ["1", "2"]
        assert await redis.lrange(old.batch(RUNNING).settled, 0, -1) == ["1"]
        file = await FileCatalog(client, settings.jobs.namespace).get(f"file-{1:032x}")
        assert file is not None
        assert (file.filename, file.bytes, file.purpose) == ("in1.jsonl", 60, "batch")
    finally:
        await client.aclose()


async def test_nothing_is_touched_while_the_version_before_may_be_at_work(
    redis: Redis, settings: Settings, old: Keys
) -> None:
    leases = old.batch(LEASED).leases
    await redis.zadd(leases, {"1": await read_server_ms(redis) + 30_000})
    with pytest.raises(UnsuitableServerError, match=r"1 of their requests are leased.*Take it down.*ends in (30|29) s"):
        await connect(settings)
    assert await redis.get(old.schema) == "1"
    assert await redis.lrange(old.batch(RUNNING).queue, 0, -1) == ["3:20:9:1", "4:30:9:0", "5:40:9:0", "6:50:9:0"]
    await redis.zadd(leases, {"1": 1})
    await (await connect(settings)).aclose()
    assert await redis.get(old.schema) == SCHEMA_VERSION


async def test_it_is_done_once_however_many_start(redis: Redis, settings: Settings, old: Keys) -> None:
    clients = await asyncio.gather(*(connect(settings) for _ in range(4)))
    for client in clients:
        await client.aclose()
    entries = await redis.lrange(old.batch(RUNNING).queue, 0, -1)
    assert entries == ["2:10:9:0", "3:20:9:1", "4:30:9:0", "5:40:9:0", "6:50:9:0"]
