"""Data as version 1 of the schema had them are taken over, wholly, and only when nobody is at work on them.

`schema_1.json` is what the first program of that version has written: a batch of six requests of which one is done, one
is leased and one was given back after a failure; a batch that has ended; one that is to be validated; one that is being
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
from conserve.jobs.claims import ResultRef
from conserve.jobs.clock import read_server_ms
from conserve.jobs.connection import connect
from conserve.jobs.errors import UnsuitableServerError
from conserve.jobs.files import FileStore
from conserve.jobs.keys import SCHEMA_VERSION, Keys
from conserve.jobs.queue import JobQueue

WRITTEN = Path(__file__).with_name("schema_1.json")
RUNNING, ENDED, NEW, CANCELLED, LEASED = (f"batch_{number:032x}" for number in range(1, 6))
NEWEST_FILE = f"file-{5:032x}"
LONG_MS = 60_000


@pytest.fixture
async def old(redis: Redis, settings: Settings) -> Keys:
    """The data, in the namespace of the test, with the lease of the last batch over like the others."""
    keys = Keys(settings.jobs.namespace)
    await redis.delete(keys.schema, keys.deployment)
    for name, entry in json.loads(WRITTEN.read_text()).items():
        key, value = name.replace("old:", f"{settings.jobs.namespace}:", 1), entry["value"]
        await write(redis, key, entry["type"], value)
    await redis.zadd(keys.batch(LEASED).leases, {"1": 1})
    put_file(settings)
    return keys


def put_file(settings: Settings) -> None:
    store = FileStore(settings.files_url)
    store.storage.create_once(store.file_path(NEWEST_FILE), b"{}\n")


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


async def read_all(redis: Any, keys: Keys) -> dict[str, Any]:
    """What there is of all batches, and of the schema."""
    found = {keys.schema: await redis.get(keys.schema)}
    for batch in map(keys.batch, (RUNNING, ENDED, NEW, CANCELLED, LEASED)):
        base = batch.batch
        found |= {name: await redis.hgetall(name) for name in (base, f"{base}:leased", batch.fences, batch.results)}
        found |= {name: await redis.lrange(name, 0, -1) for name in (batch.queue, batch.settled)}
        found[batch.leases] = await redis.zrange(batch.leases, 0, -1, withscores=True)
    return found


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
        page = await queue.page(None, 20)
        assert page is not None
        assert {one.id for one in page.data} == {RUNNING, ENDED, NEW, CANCELLED, LEASED}
        assert await redis.zrange(old.ended_batches, 0, -1) == [ENDED]
        assert set(await queue.results(ENDED)) == {1, 2}
        assert await redis.lrange(old.batch(ENDED).settled, 0, -1) == ["1", "2"]
        assert await redis.hget(old.batch(ENDED).batch, "settled") == "2"
        assert await redis.pttl(old.batch(ENDED).settled) > 0
        assert await redis.lrange(old.batch(RUNNING).settled, 0, -1) == ["1"]
        assert await redis.pttl(old.batch(RUNNING).settled) == -1
        file = await FileCatalog(client, settings.jobs.namespace).get(f"file-{1:032x}")
        assert file is not None
        assert (file.filename, file.bytes, file.purpose) == ("in1.jsonl", 60, "batch")
    finally:
        await client.aclose()


async def test_one_that_its_keeper_had_not_put_away_is_put_away_later(
    redis: Redis, settings: Settings, old: Keys
) -> None:
    await redis.zadd(old.active_batches, {ENDED: 1})
    await (await connect(settings)).aclose()
    assert await redis.zrange(old.ended_batches, 0, -1) == []
    assert await redis.pttl(old.batch(ENDED).settled) > 0


async def test_an_order_of_results_that_is_there_stays(redis: Redis, settings: Settings, old: Keys) -> None:
    await redis.rpush(old.batch(ENDED).settled, 2, 1)
    await redis.hset(old.batch(ENDED).batch, "settled", "7")
    await redis.rpush(old.batch(RUNNING).settled, 9, 9)
    await (await connect(settings)).aclose()
    assert await redis.lrange(old.batch(ENDED).settled, 0, -1) == ["2", "1"]
    assert await redis.hget(old.batch(ENDED).batch, "settled") == "7"
    assert await redis.lrange(old.batch(RUNNING).settled, 0, -1) == ["1"], "one that is not right is made anew"


async def test_who_still_computes_what_it_had_leased_commits_it_nowhere(
    redis: Redis, settings: Settings, old: Keys
) -> None:
    client, queue = await open_queue(settings)
    try:
        late = ResultRef(2, "2-alice", "output", "s-9", 0, 1, 7, 3)
        assert await queue.commit(RUNNING, [late]) == set()
        assert await queue.states(RUNNING, [2]) == {2: RequestState.READY}
    finally:
        await client.aclose()


async def test_a_leased_request_that_is_done_is_not_done_again(redis: Redis, settings: Settings, old: Keys) -> None:
    await redis.hset(f"{old.batch(RUNNING).batch}:leased", "1", "1:0:9:0")
    await (await connect(settings)).aclose()
    assert "1:0:9:0" not in await redis.lrange(old.batch(RUNNING).queue, 0, -1)


async def test_what_is_there_of_the_new_schema_is_put_back_as_well(redis: Redis, settings: Settings, old: Keys) -> None:
    """As by a server that has forgotten that the data were taken over."""
    await (await connect(settings)).aclose()
    client, queue = await open_queue(settings)
    await queue.claim(RUNNING, 3, 1, "new", "t")
    await client.aclose()
    await redis.set(old.schema, "1")
    await asyncio.sleep(0.01)
    await (await connect(settings)).aclose()
    entries = await redis.lrange(old.batch(RUNNING).queue, 0, -1)
    assert sorted(entries) == ["2:10:9:0", "3:20:9:1", "4:30:9:0", "5:40:9:0", "6:50:9:0"]
    assert await redis.zrange(old.batch(RUNNING).leases, 0, -1) == []
    assert await redis.hgetall(old.batch(RUNNING).entries) == {}


@pytest.mark.parametrize(
    ("at_work", "said"),
    [
        ("lease", r"1 requests are leased, 0 replicas report, 0 batches.*Take it down.*ends in (30|29) s"),
        ("replica", "0 requests are leased, 1 replicas report"),
        ("validator", "0 replicas report, 1 batches are being validated"),
    ],
)
async def test_nothing_is_touched_while_the_version_before_is_at_work(
    redis: Redis, settings: Settings, old: Keys, at_work: str, said: str
) -> None:
    if at_work == "lease":
        await redis.zadd(old.batch(LEASED).leases, {"1": await read_server_ms(redis) + 30_000})
    elif at_work == "replica":
        await redis.sadd(old.replicas, "r1", "long-gone")  # type: ignore[misc] # of redis-py: it is awaitable
        await redis.set(f"{old.report_prefix}r1", "{}", px=LONG_MS)
    else:
        await redis.set(old.batch(NEW).validator, "t", px=LONG_MS)
    before = await read_all(redis, old)
    with pytest.raises(UnsuitableServerError, match=said):
        await connect(settings)
    assert await read_all(redis, old) == before
    await redis.delete(f"{old.report_prefix}r1", old.batch(NEW).validator)
    await redis.zadd(old.batch(LEASED).leases, {"1": 1})
    await (await connect(settings)).aclose()
    assert await redis.get(old.schema) == SCHEMA_VERSION


async def test_only_the_application_takes_over_and_only_its_own(redis: Redis, settings: Settings, old: Keys) -> None:
    before = await read_all(redis, old)
    with pytest.raises(UnsuitableServerError, match=r"older version.*start this one"):
        await connect(settings, check_files=False)
    store = FileStore(settings.files_url)
    store.storage.delete(store.file_path(NEWEST_FILE))
    with pytest.raises(UnsuitableServerError, match=f"{NEWEST_FILE}.*another deployment"):
        await connect(settings)
    assert await read_all(redis, old) == before


async def test_it_is_done_once_however_many_start(redis: Redis, settings: Settings, old: Keys) -> None:
    clients = await asyncio.gather(*(connect(settings) for _ in range(4)))
    for client in clients:
        await client.aclose()
    entries = await redis.lrange(old.batch(RUNNING).queue, 0, -1)
    assert entries == ["2:10:9:0", "3:20:9:1", "4:30:9:0", "5:40:9:0", "6:50:9:0"]
