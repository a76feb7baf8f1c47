"""Attempts that fail: delays by the server's clock, suspects that run alone, reasons that are kept."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from conserve.jobs.scripts import Scripts
from conserve.policy.retry import FaultKind
from tests.integration.bench import LONG_MS, Bench


@pytest.fixture
def make_bench(redis: Redis, store: FileStore, settings: Settings) -> Any:
    def make(**jobs: Any) -> Bench:
        raw = settings.model_dump()
        return Bench(redis, store, Settings.model_validate(raw | {"jobs": raw["jobs"] | jobs}))

    return make


async def make_due(bench: Bench, redis: Redis, batch_id: str) -> None:
    """As if every delay were over."""
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}:delayed"
    for line in await redis.zrange(key, 0, -1):
        await redis.zadd(key, {line: 1})


async def test_a_delay_is_added_to_the_clock_of_the_server(make_bench: Any, redis: Redis) -> None:
    bench = make_bench(retry_delay_s=1_000, max_retry_delay_s=3_000, max_attempts=5, max_retry_time_s=100_000)
    queue, batch_id = bench.queue, await bench.start(2)
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}:delayed"
    for longest_s in (1_000, 2_000, 3_000, 3_000):
        (one,) = await queue.claim(batch_id, 1, LONG_MS, "a")
        assert one.line == 1
        before_s, _ = await redis.time()
        assert await queue.retry(one, FaultKind.ENGINE_FAULT, "it fell over")
        after_s, _ = await redis.time()
        due_ms = await redis.zscore(key, 1)
        assert (before_s + longest_s / 2) * 1e3 <= due_ms <= (after_s + 1 + longest_s) * 1e3
        assert await queue.states(batch_id, [1]) == {1: "delayed"}
        (summary,) = await queue.active_summaries()
        assert (summary.ready, summary.leased) == (1, 0), "a delayed request is not ready"
        (other,) = await queue.claim(batch_id, 5, LONG_MS, "a")
        assert other.line == 2
        await queue.release(batch_id, {2: other.fence})
        await make_due(bench, redis, batch_id)
        assert (await queue.active_summaries())[0].ready == 2
    assert [one.reason for one in await queue.failures(batch_id, 1)] == ["it fell over"] * 4


async def test_time_for_attempts_is_limited(make_bench: Any) -> None:
    bench = make_bench(retry_delay_s=1_000, max_retry_delay_s=1_000, max_retry_time_s=400)
    batch_id = await bench.start(1)
    (one,) = await bench.queue.claim(batch_id, 1, LONG_MS, "a")
    await bench.queue.retry(one, FaultKind.ENGINE_FAULT, "it fell over")
    assert (await bench.end(batch_id))[2] == {"id-1": "retry_time_exceeded"}


async def test_what_cannot_pass_is_not_tried_again(bench: Bench) -> None:
    batch_id = await bench.start(1)
    (one,) = await bench.queue.claim(batch_id, 1, LONG_MS, "a")
    await bench.queue.retry(one, FaultKind.UNUSABLE, "changed")
    assert (await bench.end(batch_id))[2] == {"id-1": "request_unusable"}


async def test_a_suspect_comes_alone_and_is_given_up_when_it_fails_again(make_bench: Any) -> None:
    bench = make_bench(suspicions=2, max_attempts=5)
    queue, batch_id = bench.queue, await bench.start(4)
    for kind in (FaultKind.ENGINE_DIED, FaultKind.TIMEOUT):
        claimed = await queue.claim(batch_id, 3, LONG_MS, "a")
        assert [one.alone for one in claimed] == [False] * 3
        for one in claimed[:2]:
            await queue.retry(one, kind, "bad company")
        await queue.release(batch_id, {3: claimed[2].fence})
    (poison,) = await queue.claim(batch_id, 4, LONG_MS, "a")
    assert (poison.line, poison.alone, poison.attempt) == (1, True, 3)
    (innocent,) = await queue.claim(batch_id, 4, LONG_MS, "b")
    assert (innocent.line, innocent.alone) == (2, True)
    rest = await queue.claim(batch_id, 4, LONG_MS, "b")
    assert [one.line for one in rest] == [3, 4]
    for one in (poison, innocent):
        assert await queue.begin(one)
        assert await queue.begin(one)
    await bench.finish([innocent])
    assert await queue.retry(poison, FaultKind.ENGINE_DIED, "again")
    assert not await queue.begin(poison)
    assert await queue.states(batch_id, [1, 2]) == {1: "failed", 2: "completed"}
    await bench.finish(rest)
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, output, errors) == ("completed", ["id-2", "id-3", "id-4"], {"id-1": "poison_request"})
    message = (await bench.read(batch.error_file_id))[0]["error"]["message"]
    assert "1: engine_died: bad company / 2: timeout: bad company / 3 (alone): engine_died: again" in message


@pytest.mark.parametrize("begun", [False, True])
async def test_only_an_attempt_that_began_counts_against_a_suspect(make_bench: Any, begun: bool) -> None:
    bench = make_bench(suspicions=1, max_attempts=5)
    queue, batch_id = bench.queue, await bench.start(2)
    (one,) = await queue.claim(batch_id, 1, LONG_MS, "a")
    await queue.retry(one, FaultKind.TIMEOUT, "slow")
    (suspect,) = await queue.claim(batch_id, 2, 1, "a", "t")
    assert (suspect.alone, suspect.attempt) == (True, 2)
    assert await queue.claim(batch_id, 2, 1, "a", "t") == [suspect]
    if begun:
        assert await queue.begin(suspect)
    await bench.lapse()
    assert await queue.reap(batch_id) == 1
    if begun:
        assert await queue.states(batch_id, [1]) == {1: "failed"}
        return
    assert len(await queue.failures(batch_id, 1)) == 1
    (again,) = await queue.claim(batch_id, 2, LONG_MS, "b")
    assert (again.alone, again.attempt) == (True, 2)
    assert await queue.release(batch_id, {1: again.fence}) == 1
    assert await queue.states(batch_id, [1]) == {1: "delayed"}
    (third,) = await queue.claim(batch_id, 2, LONG_MS, "b")
    assert (third.line, third.alone) == (1, True)


async def test_requests_before_a_suspect_come_without_it(make_bench: Any) -> None:
    bench = make_bench(suspicions=2, max_attempts=5)
    queue, batch_id = bench.queue, await bench.start(4)
    (first,) = await queue.claim(batch_id, 1, LONG_MS, "a")
    await queue.retry(first, FaultKind.TIMEOUT, "slow")
    (first, second) = await queue.claim(batch_id, 2, LONG_MS, "a")
    await queue.retry(second, FaultKind.ENGINE_FAULT, "it fell over")
    await bench.lapse()  # So that the one comes before the other.
    await queue.retry(first, FaultKind.TIMEOUT, "slow")
    assert [one.line for one in await queue.claim(batch_id, 4, LONG_MS, "a")] == [2]
    assert [(one.line, one.alone) for one in await queue.claim(batch_id, 4, LONG_MS, "a")] == [(1, True)]
    assert [one.line for one in await queue.claim(batch_id, 4, LONG_MS, "a")] == [3, 4]


async def test_a_lease_renewed_while_it_is_being_taken_away_stays(
    bench: Bench, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = await bench.start(1)
    (one,) = await queue.claim(batch_id, 1, 1, "a")
    await bench.lapse()
    real = Scripts.run

    async def run(scripts: Scripts, name: str, *args: Any) -> Any:
        found = await real(scripts, name, *args)
        if name == "attempts":
            await queue.renew(batch_id, {1: one.fence}, LONG_MS)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Scripts, "run", run)
        assert await queue.reap(batch_id) == 0
    assert await queue.states(batch_id, [1]) == {1: "leased"}
    assert await queue.failures(batch_id, 1) == []


async def test_many_leases_run_out_at_once(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(1_100)
    assert len(await queue.claim(batch_id, 1_100, 1, "a")) == 1_100
    await bench.lapse()
    assert await queue.reap(batch_id) == 1_100
    assert await queue.reap(batch_id) == 0
    assert len(await queue.claim(batch_id, 1_100, LONG_MS, "a")) == 1_100
