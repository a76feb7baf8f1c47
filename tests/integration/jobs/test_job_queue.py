from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from conserve.jobs.claims import RenewResult, ResultRef
from conserve.jobs.errors import ValidatorReplacedError
from conserve.jobs.queue import JobQueue
from conserve.jobs.validation import RequestRange
from conserve.policy.retry import FaultKind
from tests.integration.bench import LONG_MS, Bench


async def test_claims_are_in_order_and_never_the_same(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(10)
    first = await queue.claim(batch_id, 4, LONG_MS, "epoch-a")
    rest = await asyncio.gather(*(queue.claim(batch_id, 4, LONG_MS, f"epoch-{i}") for i in range(5)))
    assert [one.line for one in first] == [1, 2, 3, 4]
    assert sorted(one.line for part in (first, *rest) for one in part) == list(range(1, 11))
    assert {one.attempt for one in first} == {1}
    assert len({one.fence for part in (first, *rest) for one in part}) == 10
    (summary,) = await queue.active_summaries()
    assert (summary.total, summary.ready, summary.leased, summary.model) == (10, 0, 10, "model-a")


async def test_a_commit_is_counted_once_and_the_last_one_ends_the_batch(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(3)
    claimed = await queue.claim(batch_id, 3, LONG_MS, "e")
    refs = await bench.write(claimed)
    assert await queue.commit(batch_id, refs[:2]) == {1, 2}
    assert await queue.commit(batch_id, refs[:2]) == {1, 2}
    batch = await bench.get(batch_id)
    assert (batch.status, batch.request_counts.completed) == ("in_progress", 2)
    assert await queue.commit(batch_id, refs) == {1, 2, 3}
    batch = await bench.get(batch_id)
    assert (batch.status, batch.request_counts.completed) == ("finalizing", 3)
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (21, 9, 30)
    other = replace(refs[0], segment="other-1")
    assert await queue.commit(batch_id, [other]) == set()


async def test_a_stale_commit_changes_nothing(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(1)
    (old,) = await queue.claim(batch_id, 1, 1, "a")
    await bench.lapse()
    assert await queue.reap(batch_id) == 1
    assert await queue.states(batch_id, [1, 2]) == {1: "delayed"}
    failed = await queue.failures(batch_id, 1)
    assert [(one.kind, one.alone) for one in failed] == [("lease_expired", False)]
    (new,) = await queue.claim(batch_id, 1, LONG_MS, "b")
    assert (new.line, new.attempt) == (1, 2)
    assert new.fence != old.fence
    assert await queue.commit(batch_id, await bench.write([old])) == set()
    assert (await queue.renew(batch_id, {1: old.fence}, LONG_MS)).lost == {1}
    assert await queue.release(batch_id, {1: old.fence}) == 0
    assert not await queue.retry(old, FaultKind.ENGINE_FAULT, "late")
    assert await queue.failures(batch_id, 1) == failed
    refs = await bench.write([new])
    assert await queue.commit(batch_id, refs) == {1}
    _, output, _ = await bench.end(batch_id)
    assert output == ["id-1"]
    (line,) = await bench.read((await bench.get(batch_id)).output_file_id)
    assert line["response"]["body"]["fence"] == new.fence


async def test_a_late_commit_counts_until_the_next_claim(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(2)
    late, _ = await queue.claim(batch_id, 2, 1, "a")
    await bench.lapse()
    assert await queue.reap(batch_id) == 2
    assert await queue.commit(batch_id, await bench.write([late])) == {1}
    assert await queue.states(batch_id, [1, 2, 3]) == {1: "completed", 2: "delayed"}
    assert (await queue.active_summaries())[0].ready == 1
    assert [one.line for one in await queue.claim(batch_id, 2, LONG_MS, "b")] == [2]


async def test_a_fence_of_another_epoch_never_matches(bench: Bench, queue: JobQueue, redis: Redis) -> None:
    batch_id = await bench.start(1)
    (old,) = await queue.claim(batch_id, 1, 1, "epoch-before")
    await bench.lapse()
    await queue.reap(batch_id)
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}"
    await redis.hset(key, "fence_counter", "0")  # type: ignore[misc]  # As after a failover to an older state.
    (new,) = await queue.claim(batch_id, 1, LONG_MS, "epoch-after")
    assert old.fence.split("-")[0] == new.fence.split("-")[0]
    assert await queue.commit(batch_id, await bench.write([old])) == set()


async def test_renewing_keeps_leases(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(3)
    claimed = await queue.claim(batch_id, 2, 1, "a")
    await bench.lapse()
    renewed = await queue.renew(batch_id, {1: claimed[0].fence, 3: "no-such"}, LONG_MS)
    assert (renewed.lost, renewed.cancelled) == ({3}, False)
    assert await queue.reap(batch_id) == 1
    assert [one.line for one in await queue.claim(batch_id, 3, LONG_MS, "b")] == [2, 3]
    unknown = await queue.renew("batch_00000000", {1: "f"}, LONG_MS)
    assert (unknown.lost, unknown.cancelled) == ({1}, True)


async def test_giving_back_puts_requests_in_front(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(3)
    (one,) = await queue.claim(batch_id, 1, LONG_MS, "a")
    assert await queue.release(batch_id, {1: one.fence}) == 1
    assert await queue.release(batch_id, {1: one.fence}) == 0
    assert await queue.states(batch_id, [1]) == {1: "ready"}
    (again,) = await queue.claim(batch_id, 1, LONG_MS, "a")
    assert (again.line, again.attempt) == (1, 1)


async def test_a_late_commit_of_a_request_given_back_counts(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(2)
    (one,) = await queue.claim(batch_id, 1, LONG_MS, "a")
    await queue.release(batch_id, {1: one.fence})
    assert await queue.commit(batch_id, await bench.write([one])) == {1}
    # It stands in the queue again, and is dropped on the way.
    assert (await queue.active_summaries())[0].ready == 2
    assert [one.line for one in await queue.claim(batch_id, 2, LONG_MS, "b")] == [2]


async def test_a_claim_whose_answer_was_lost_gives_the_same_leases_again(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(6)
    first = await queue.claim(batch_id, 3, LONG_MS, "a", "t1")
    assert await queue.claim(batch_id, 2, LONG_MS, "a", "t1") == first
    assert await queue.claim(batch_id, 0, LONG_MS, "a", "t1") == first
    assert [one.line for one in await queue.claim(batch_id, 1, LONG_MS, "b", "t1")] == [4], "of another claimer"
    await queue.release(batch_id, {1: first[0].fence})
    (other,) = await queue.claim(batch_id, 1, LONG_MS, "b", "t2")
    assert other.line == 1
    assert await queue.claim(batch_id, 3, LONG_MS, "a", "t1") == first[1:], "without what is another's now"
    assert [one.line for one in await queue.claim(batch_id, 3, LONG_MS, "a", "t3")] == [5, 6]
    assert await queue.claim(batch_id, 3, LONG_MS, "a", "t4") == []


@pytest.mark.parametrize("by_lease", [True, False])
async def test_a_request_that_always_breaks_ends_as_an_error(bench: Bench, queue: JobQueue, by_lease: bool) -> None:
    batch_id = await bench.start(2)
    for attempt in (1, 2, 3):
        (one,) = await queue.claim(batch_id, 1, 1, "a")
        assert (one.line, one.attempt) == (1, attempt)
        if by_lease:
            await bench.lapse()
            assert await queue.reap(batch_id) == 1
        else:
            assert await queue.retry(one, FaultKind.ENGINE_FAULT, f"a|b: {attempt} \ud800")
            assert not await queue.retry(one, FaultKind.ENGINE_FAULT, "again")
    assert await queue.states(batch_id, [1]) == {1: "failed"}
    assert await queue.commit(batch_id, await bench.write([one])) == set()
    await bench.finish(await queue.claim(batch_id, 5, LONG_MS, "a"))
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, output, errors) == ("completed", ["id-2"], {"id-1": "max_attempts_exceeded"})
    (line,) = await bench.read(batch.error_file_id)
    message = line["error"]["message"]
    assert "3 attempts" in message
    expected = [f"{n}: lease_expired" if by_lease else f"{n}: engine_fault: a|b: {n} ?" for n in (1, 2, 3)]
    assert all(reason in message for reason in expected)
    assert len(await queue.failures(batch_id, 1)) == 3, "known after the end, too"


@pytest.mark.parametrize("by_lease", [True, False])
async def test_giving_up_on_the_last_request_ends_the_batch(bench: Bench, queue: JobQueue, by_lease: bool) -> None:
    batch_id = await bench.start(1)
    for _ in range(3):
        (one,) = await queue.claim(batch_id, 1, 1, "a")
        await bench.lapse()
        if by_lease:
            await queue.reap(batch_id)
        else:
            await queue.retry(one, FaultKind.TIMEOUT, "slow")
    assert (await bench.get(batch_id)).status == "finalizing"
    batch, output, _ = await bench.end(batch_id)
    assert (batch.status, batch.output_file_id, output) == ("completed", None, [])


async def test_cancelling(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(3)
    (one,) = await queue.claim(batch_id, 1, LONG_MS, "a")
    for _ in range(2):
        assert (await bench.service.cancel_batch(batch_id)).status == "cancelling"
    assert await queue.claim(batch_id, 3, LONG_MS, "b") == []
    assert await queue.renew(batch_id, {1: one.fence}, LONG_MS) == RenewResult(lost=frozenset(), cancelled=True)
    assert await queue.commit(batch_id, await bench.write([one])) == {1}
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, output) == ("cancelled", ["id-1"])
    assert errors == {"id-2": "batch_cancelled", "id-3": "batch_cancelled"}


async def test_commits_after_the_freeze_change_nothing(bench: Bench, queue: JobQueue, redis: Redis) -> None:
    batch_id = await bench.start(2)
    claimed = await queue.claim(batch_id, 2, LONG_MS, "a")
    refs = await bench.write(claimed)
    await bench.service.cancel_batch(batch_id)
    assert not await queue.freeze_cancelled(batch_id), "what still runs has a grace time"
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}"
    await redis.hset(key, "cancelling_at_ms", "1")  # type: ignore[misc]  # It is over.
    assert await queue.freeze_cancelled(batch_id)
    assert await queue.commit(batch_id, refs) == set()
    assert await queue.release(batch_id, {1: claimed[0].fence}) == 0
    assert not await queue.retry(claimed[0], FaultKind.ENGINE_FAULT, "")
    assert await queue.reap(batch_id) == 0
    _, output, errors = await bench.end(batch_id)
    assert (output, sorted(errors)) == ([], ["id-1", "id-2"])


async def test_a_validator_that_died_leaves_nothing_behind(bench: Bench, queue: JobQueue, redis: Redis) -> None:
    batch_id = await bench.submit(b"unread")
    ranges = [RequestRange(i, i * 10, 9) for i in range(1, 5)]
    assert await queue.begin_enqueue(batch_id, "dead")
    assert await queue.enqueue(batch_id, "dead", 0, ranges) == 4
    assert await queue.enqueue(batch_id, "dead", 0, ranges) == 4, "a repeated call appends nothing"
    assert await queue.claim(batch_id, 1, LONG_MS, "a") == []
    assert not await queue.begin_enqueue(batch_id, "next"), "the first one may still live"
    await redis.delete(f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}:validator")  # Its token ran out.
    assert await queue.begin_enqueue(batch_id, "next")
    with pytest.raises(ValidatorReplacedError):
        await queue.enqueue(batch_id, "dead", 4, ranges)
    with pytest.raises(ValidatorReplacedError):
        await queue.start(batch_id, "dead", 4, "m")
    with pytest.raises(ValidatorReplacedError):
        await queue.fail(batch_id, "dead", [])
    assert await queue.enqueue(batch_id, "next", 0, ranges[:2]) == 2
    with pytest.raises(ValidatorReplacedError):
        await queue.enqueue(batch_id, "next", 7, ranges[2:])
    with pytest.raises(ValidatorReplacedError):
        await queue.start(batch_id, "next", 4, "m")
    await queue.start(batch_id, "next", 2, "m")
    assert [one.line for one in await queue.claim(batch_id, 5, LONG_MS, "a")] == [1, 2]
    with pytest.raises(ValidatorReplacedError):
        await queue.begin_enqueue(batch_id, "next")


async def test_pages(bench: Bench, queue: JobQueue) -> None:
    ids = [await bench.submit(b"") for _ in range(5)]
    assert len(set(ids)) == 5
    page = await queue.page(limit=2)
    assert page is not None
    assert page.has_more
    rest = await queue.page(after=page.last_id, limit=3)
    assert rest is not None
    assert not rest.has_more
    assert sorted(batch.id for batch in page.data + rest.data) == sorted(ids)
    assert await queue.page(after="batch_00000000") is None


async def test_many_results_of_several_writers(bench: Bench, queue: JobQueue) -> None:
    batch_id = await bench.start(1_200)
    claimed = await queue.claim(batch_id, 1_200, LONG_MS, "a")
    assert len(claimed) == 1_200
    refs = [ResultRef(one.line, one.fence, "error", f"s{secrets.token_hex(2)}", 0, 1) for one in claimed]
    assert len(await queue.commit(batch_id, refs)) == 1_200
    stored = await queue.results(batch_id)
    assert [stored[line].segment for line in range(1, 1_201)] == [ref.segment for ref in refs]
