"""Journals of tokens on a real server: written in bulk, by the newest claim only, and gone when nobody needs them."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.journal import MOST_TOKENS, Journal, JournalEntry
from conserve.jobs.queue import JobQueue
from conserve.policy.retry import FaultKind
from tests.integration.bench import LONG_MS, Bench

REVISION = "0123456789abcdef"


def entry(claim: ClaimedRequest, start: int, token_ids: Any) -> JournalEntry:
    return JournalEntry(claim.line, claim.fence, start, list(token_ids))


async def claim_one(queue: JobQueue, batch_id: str) -> ClaimedRequest:
    (one,) = await queue.claim(batch_id, 1, LONG_MS, secrets.token_hex(4))
    return one


async def give_back(queue: JobQueue, claim: ClaimedRequest) -> None:
    assert await queue.release(claim.batch_id, {claim.line: claim.fence}) == 1


def key_of(bench: Bench, batch_id: str) -> str:
    return f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}:journal"


async def test_the_next_claim_gets_what_was_journaled(bench: Bench) -> None:
    queue, batch_id = bench.queue, await bench.start(3)
    first, second = await queue.claim(batch_id, 2, LONG_MS, "a", "t1")
    assert (first.journal, second.journal) == (None, None)
    entries = [entry(first, 0, range(40)), entry(second, 0, [200_000])]
    assert await queue.journal(batch_id, REVISION, entries) == {1: 40, 2: 1}
    assert await queue.journal(batch_id, REVISION, [entry(first, 40, range(40, 300))]) == {1: 300}

    # The same claim asked for again has it, too: the answer may have been lost.
    repeated = await queue.claim(batch_id, 2, LONG_MS, "a", "t1")
    assert [one.journal for one in repeated] == [Journal(REVISION, tuple(range(300))), Journal(REVISION, (200_000,))]

    await give_back(queue, first)
    assert await queue.retry(second, FaultKind.ENGINE_DIED, "it ended")
    heirs = await queue.claim(batch_id, 3, LONG_MS, "b")
    assert {one.line: one.journal for one in heirs} == {
        1: Journal(REVISION, tuple(range(300))),
        2: Journal(REVISION, (200_000,)),
        3: None,
    }
    (heir,) = [one for one in heirs if one.line == 1]
    assert await queue.journal(batch_id, REVISION, [entry(heir, 300, [7])]) == {1: 301}


@pytest.mark.parametrize("sizes", [[1] * 10, [127, 1, 1], [128, 128], [129, 127, 400], [1000]])
async def test_parts_are_put_together_wherever_they_were_cut(bench: Bench, sizes: list[int]) -> None:
    queue, batch_id = bench.queue, await bench.start(1)
    claim, token_ids = await claim_one(queue, batch_id), []
    for size in sizes:
        new = [secrets.randbelow(750_000) for _ in range(size)]
        assert await queue.journal(batch_id, REVISION, [entry(claim, len(token_ids), new)]) == {
            1: len(token_ids) + size
        }
        token_ids += new
    await give_back(queue, claim)
    assert (await claim_one(queue, batch_id)).journal == Journal(REVISION, tuple(token_ids))


async def test_a_lost_claim_cannot_write(bench: Bench) -> None:
    queue, batch_id = bench.queue, await bench.start(2)
    loser, other = await queue.claim(batch_id, 2, 1, "a")
    assert await queue.journal(batch_id, REVISION, [entry(loser, 0, [1, 2])]) == {1: 2}
    await bench.lapse()
    # Its lease has run out and was taken away, but nobody has claimed it since.
    assert await queue.reap(batch_id) == 2
    assert await queue.journal(batch_id, REVISION, [entry(loser, 2, [3])]) == {1: 3}
    heirs = await queue.claim(batch_id, 2, LONG_MS, "b")
    (heir,) = [one for one in heirs if one.line == 1]
    assert heir.journal == Journal(REVISION, (1, 2, 3))
    late = [entry(loser, 3, [4]), entry(loser, 0, [9]), JournalEntry(1, "", 0, [9]), JournalEntry(77, "f", 0, [9])]
    for one in late:
        assert await queue.journal(batch_id, REVISION, [one]) == {}
    both = [entry(other, 0, [5]), entry(heir, 3, [6])]
    assert await queue.journal(batch_id, REVISION, both) == {1: 4}
    await give_back(queue, heir)
    assert (await claim_one(queue, batch_id)).journal == Journal(REVISION, (1, 2, 3, 6))


async def test_a_repeated_or_displaced_call_changes_nothing(bench: Bench) -> None:
    queue, batch_id = bench.queue, await bench.start(1)
    claim = await claim_one(queue, batch_id)
    for _ in range(2):
        assert await queue.journal(batch_id, REVISION, [entry(claim, 0, [1, 2])]) == {1: 2}
    for _ in range(2):
        assert await queue.journal(batch_id, REVISION, [entry(claim, 2, [3])]) == {1: 3}
    # Redis was taken back to an older state: the caller is told where to go on.
    assert await queue.journal(batch_id, REVISION, [entry(claim, 9, [10])]) == {1: 3}
    assert await queue.journal(batch_id, "another", [entry(claim, 3, [10])]) == {1: 0}
    await give_back(queue, claim)
    assert (await claim_one(queue, batch_id)).journal == Journal(REVISION, (1, 2, 3))


async def test_an_answer_that_begins_anew_replaces_what_was_there(bench: Bench, redis: Redis) -> None:
    queue, batch_id = bench.queue, await bench.start(1)
    claim = await claim_one(queue, batch_id)
    await queue.journal(batch_id, REVISION, [entry(claim, 0, range(500))])
    assert await queue.journal(batch_id, "another", [entry(claim, 0, [4, 5])]) == {1: 2}
    assert await redis.hlen(key_of(bench, batch_id)) == 2
    await give_back(queue, claim)
    assert (await claim_one(queue, batch_id)).journal == Journal("another", (4, 5))


async def test_what_has_ended_has_no_journal(bench: Bench, redis: Redis) -> None:
    queue, batch_id = bench.queue, await bench.start(3)
    claims = await queue.claim(batch_id, 3, LONG_MS, "a")
    await queue.journal(batch_id, REVISION, [entry(one, 0, range(200)) for one in claims])
    assert await redis.hlen(key_of(bench, batch_id)) == 9
    await bench.finish([claims[0]])
    assert await redis.hlen(key_of(bench, batch_id)) == 6
    assert await queue.journal(batch_id, REVISION, [entry(claims[0], 200, [1])]) == {}
    # Given up.
    assert await queue.retry(claims[1], FaultKind.UNUSABLE, "it cannot be run")
    assert await redis.hlen(key_of(bench, batch_id)) == 3
    await bench.service.cancel_batch(batch_id)
    await give_back(queue, claims[2])
    assert await queue.freeze_cancelled(batch_id)
    assert await queue.journal(batch_id, REVISION, [entry(claims[2], 200, [1])]) == {}
    batch, _, errors = await bench.end(batch_id)
    assert (batch.status, errors) == ("cancelled", {"id-2": "request_unusable", "id-3": "batch_cancelled"})
    assert not await redis.exists(key_of(bench, batch_id))


async def test_many_requests_go_in_one_call(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, batch_id = bench.queue, await bench.start(300)
    claims = await queue.claim(batch_id, 300, LONG_MS, "a")
    calls: list[str] = []
    run = queue._scripts.run

    async def count(name: str, *args: Any) -> Any:
        calls.append(name)
        return await run(name, *args)

    monkeypatch.setattr(queue._scripts, "run", count)
    assert await queue.journal(batch_id, REVISION, [entry(one, 0, range(32)) for one in claims]) == dict.fromkeys(
        range(1, 301), 32
    )
    assert calls == ["journal"]


async def test_a_token_takes_a_few_bytes(bench: Bench, redis: Redis) -> None:
    queue, batch_id = bench.queue, await bench.start(100)
    claims = await queue.claim(batch_id, 100, LONG_MS, "a")
    for start in range(0, 512, 32):
        entries = [entry(one, start, (secrets.randbelow(150_000) for _ in range(32))) for one in claims]
        await queue.journal(batch_id, REVISION, entries)
    size = await redis.memory_usage(key_of(bench, batch_id), samples=0)
    assert size / (100 * 512) < 5


async def test_the_longest_journal_fits_into_a_claim(bench: Bench) -> None:
    queue, batch_id = bench.queue, await bench.start(1)
    claim = await claim_one(queue, batch_id)
    token_ids = range(MOST_TOKENS)
    assert await queue.journal(batch_id, REVISION, [entry(claim, 0, token_ids)]) == {1: MOST_TOKENS}
    await give_back(queue, claim)
    assert (await claim_one(queue, batch_id)).journal == Journal(REVISION, tuple(token_ids))
