"""The clock of Redis jumps, and Redis is taken back to an older state."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.jobs import server_watch
from conserve.jobs.clock import read_server_ms
from conserve.jobs.registry import BatchRegistry
from conserve.jobs.server_watch import ServerWatch
from tests.integration.bench import LONG_MS, Bench, make_input


class ServerClock:
    """TIME as the keeper reads it, beside that of the scripts, which cannot be moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0

        async def read(client: Redis) -> int:
            return await read_server_ms(client) + self.ahead_s * 1000

        monkeypatch.setattr(server_watch, "read_server_ms", read)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ServerClock:
    return ServerClock(monkeypatch)


async def test_leases_that_a_jump_has_ended_can_be_renewed(bench: Bench, server: ServerClock) -> None:
    batch_id = await bench.start(1)
    [claimed] = await bench.queue.claim(batch_id, 1, 1, "a")
    await bench.lapse()  # As after a jump.
    bench.now_s += 100
    server.ahead_s = 3_600 + 100
    await bench.keeper.run_once()
    assert (await bench.queue.active_summaries())[0].leased == 1, "its replica has had no chance to renew it"
    renewed = await bench.queue.renew(batch_id, {1: claimed.fence}, 1)
    assert not renewed.lost
    await bench.lapse()
    bench.now_s += bench.lease_s
    await bench.keeper.run_once()
    assert (await bench.queue.active_summaries())[0].leased == 0, "and then it was not renewed"


async def test_a_window_does_not_end_by_a_jump_and_back(bench: Bench, server: ServerClock) -> None:
    batch_id = await bench.start(1, "10m")
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}"
    ends: Any = await bench.redis.hget(key, "expires_at_ms")  # type: ignore[misc]
    await bench.redis.hset(key, "expires_at_ms", "1")  # type: ignore[misc]  # As the scripts see it after a jump.
    server.ahead_s = 3_600
    for _ in range(2):
        await bench.keeper.run_once()
        assert (await bench.get(batch_id)).status == "in_progress"
    server.ahead_s = 0
    await bench.redis.hset(key, "expires_at_ms", ends)  # type: ignore[misc]
    bench.now_s += bench.lease_s
    await bench.keeper.run_once()
    assert (await bench.get(batch_id)).status == "in_progress"


async def test_a_window_ends_by_a_clock_that_stays_where_it_is(bench: Bench, server: ServerClock) -> None:
    batch_id = await bench.start(1, "10m")
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}"
    await bench.redis.hset(key, "expires_at_ms", "1")  # type: ignore[misc]
    server.ahead_s = 3_600
    await bench.keeper.run_once()
    assert (await bench.get(batch_id)).status == "in_progress"
    bench.now_s += bench.lease_s
    batch, _, _ = await bench.end(batch_id)
    assert batch.status == "expired"


async def test_an_entry_of_a_batch_that_is_being_made_stays(bench: Bench, server: ServerClock) -> None:
    await bench.keeper.run_once()
    index = f"{bench.settings.jobs.namespace}:{{index}}:active"
    await bench.redis.zadd(index, {"batch_12345678": int((await bench.redis.time())[0]) * 1000})
    server.ahead_s = 3_600
    await bench.keeper.run_once()
    assert await bench.redis.zcard(index) == 1
    bench.now_s += bench.lease_s
    await bench.keeper.run_once()
    assert await bench.redis.zcard(index) == 0


async def test_what_is_a_jump(bench: Bench, server: ServerClock) -> None:
    watch = ServerWatch(bench.redis, lambda: bench.now_s, 15_000)
    assert not (await watch.look()).jumped
    for server_s, own_s, jumped in [(6, 0, False), (9, 0, True), (60, 60, False), (-60, 0, False), (60, 0, True)]:
        server.ahead_s += server_s
        bench.now_s += own_s
        assert (await watch.look()).jumped is jumped, (server_s, own_s)


async def test_quotas_are_written_anew_after_redis_was_taken_back(bench: Bench) -> None:
    batch_id = await bench.submit(make_input(4))
    before = await bench.redis.hgetall(f"{bench.settings.jobs.namespace}:{{index}}:held")  # type: ignore[misc]
    await bench.keeper.run_once()
    await bench.finish(await bench.queue.claim(batch_id, 3, LONG_MS, "a"))
    await bench.keeper.run_once()
    ledger = BatchRegistry(bench.redis, bench.settings).ledger
    held = await ledger.used("default")
    assert held.requests == 1
    # As an older state has it.
    await bench.redis.hset(  # type: ignore[misc]
        f"{bench.settings.jobs.namespace}:{{index}}:held", mapping={batch_id: before[batch_id]}
    )
    await bench.redis.hset(f"{bench.settings.jobs.namespace}:{{index}}:used", "default|requests", "4")  # type: ignore[misc]
    bench.keeper._watch._run_id = "of the server before"
    await bench.keeper.run_once()
    assert (await ledger.used("default")).requests == 1
