from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from conserve.config import JobsSettings
from conserve.engine.contract import TokenRecord
from conserve.harvest import journaling as journaling_module
from conserve.harvest.held_work import HeldWork
from conserve.harvest.journaling import Journaling
from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.journal import Journal, JournalEntry

REVISION = "0123456789abcdef"


class FakeQueue:
    """Keeps what is written.

    Attributes:
        calls: Entries of each call.
        tokens: By batch and line.
        lost: Lines whose claim is not the newest.
        away: Whether Redis is away.
    """

    def __init__(self) -> None:
        self.calls: list[list[JournalEntry]] = []
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.lost: set[int] = set()
        self.away = False

    async def journal(self, batch_id: str, revision: str, entries: Sequence[JournalEntry]) -> dict[int, int]:
        assert revision == REVISION
        await asyncio.sleep(0)
        if self.away:
            raise RedisConnectionError("away")
        self.calls.append(list(entries))
        counts = {}
        for entry in entries:
            if entry.line in self.lost:
                continue
            there = self.tokens.setdefault((batch_id, entry.line), [])
            if entry.start in (0, len(there)):
                there[entry.start :] = entry.token_ids
            counts[entry.line] = len(there)
        return counts


class Bench:
    def __init__(self, tokens: int = 32, period_s: float = 2.0, revision: str | None = REVISION) -> None:
        self.queue: Any = FakeQueue()
        self.held = HeldWork()
        settings = JobsSettings(journal_tokens=tokens, journal_period_s=period_s)
        self.journaling = Journaling(self.queue, self.held, settings, revision)

    def claim(self, line: int, journal: Journal | None = None, batch_id: str = "b1", attempt: int = 1) -> Any:
        claimed = ClaimedRequest(batch_id, line, 0, 10, f"f{line}", attempt, journal=journal)
        record = self.journaling.open(claimed)
        task: Any = None
        self.held.add(claimed, task, record)
        return claimed, record


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_what_is_new_of_all_requests_is_written_in_one_call_for_each_batch(bench: Bench) -> None:
    _, first = bench.claim(1)
    _, second = bench.claim(2)
    _, other = bench.claim(1, batch_id="b2")
    bench.claim(3)
    first.add([1, 2])
    second.add([3])
    other.add([4])
    await bench.journaling.write()
    assert [[(one.line, one.start, list(one.token_ids)) for one in call] for call in bench.queue.calls] == [
        [(1, 0, [1, 2]), (2, 0, [3])],
        [(1, 0, [4])],
    ]
    first.add([5])
    await bench.journaling.write()
    await bench.journaling.write()
    assert [(one.line, one.start, list(one.token_ids)) for one in bench.queue.calls[2]] == [(1, 2, [5])]
    assert len(bench.queue.calls) == 3
    assert bench.journaling.counts.journaled_tokens == 5


async def test_a_write_is_due_before_an_interval_of_tokens_is_full(bench: Bench) -> None:
    _, record = bench.claim(1)
    assert record.piece == 4
    step = asyncio.create_task(bench.journaling.step())
    for _ in range(6):
        record.add([7] * 4)
        await asyncio.sleep(0)
    assert not step.done()
    record.add([7] * 4)
    await step
    assert record.journaled == 28


async def test_a_write_is_due_when_the_period_is_over() -> None:
    bench = Bench(period_s=0.01)
    _, record = bench.claim(1)
    record.add([7])
    await bench.journaling.step()
    assert bench.queue.tokens == {("b1", 1): [7]}


async def test_without_a_period_tokens_alone_make_it_due() -> None:
    bench = Bench(tokens=2, period_s=0)
    _, record = bench.claim(1)
    step = asyncio.create_task(bench.journaling.step())
    await asyncio.sleep(0.01)
    assert not step.done()
    record.add([7])
    await step
    assert record.journaled == 1


async def test_what_came_while_redis_was_away_is_written_later(bench: Bench) -> None:
    _, record = bench.claim(1)
    record.add([1])
    bench.queue.away = True
    with pytest.raises(RedisConnectionError):
        await bench.journaling.write()
    await bench.journaling.flush()
    record.add([2])
    bench.queue.away = False
    await bench.journaling.write()
    assert bench.queue.tokens == {("b1", 1): [1, 2]}


async def test_a_lost_claim_is_not_written_again(bench: Bench) -> None:
    _, record = bench.claim(1)
    bench.queue.lost = {1}
    record.add([1])
    await bench.journaling.write()
    record.add([2])
    await bench.journaling.write()
    assert (len(bench.queue.calls), record.open, bench.journaling.counts.journaled_tokens) == (1, False, 0)


async def test_redis_that_was_taken_back_gets_what_is_missing(bench: Bench) -> None:
    _, record = bench.claim(1)
    record.add([1, 2, 3])
    await bench.journaling.write()
    del bench.queue.tokens["b1", 1][1:]
    record.add([4])
    await bench.journaling.write()
    assert record.journaled == 1
    await bench.journaling.write()
    assert bench.queue.tokens["b1", 1] == [1, 2, 3, 4]


async def test_tokens_that_come_while_others_are_written_are_written_next(bench: Bench) -> None:
    _, record = bench.claim(1)
    record.add([1])
    writing = asyncio.create_task(bench.journaling.write())
    await asyncio.sleep(0)
    record.add([2])
    await writing
    assert (record.journaled, record.new_count) == (1, 1)
    await bench.journaling.write()
    assert bench.queue.tokens["b1", 1] == [1, 2]


async def test_finished_and_dropped_requests_are_not_written(bench: Bench) -> None:
    finished, first = bench.claim(1)
    dropped, second = bench.claim(2)
    first.add([1])
    second.add([2])
    bench.held.finish(finished)
    bench.held.drop("b1", {dropped.line: dropped.fence})
    await bench.journaling.write()
    assert bench.queue.calls == []


async def test_a_journal_has_an_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journaling_module, "MOST_TOKENS", 5)
    _, record = bench.claim(1)
    record.add([1, 2, 3])
    await bench.journaling.write()
    record.add([4, 5, 6, 7])
    await bench.journaling.write()
    assert bench.queue.tokens["b1", 1] == [1, 2, 3, 4, 5]
    record.add([8])
    await bench.journaling.write()
    record.add([9])
    await bench.journaling.write()
    assert (len(bench.queue.calls), record.open) == (2, False)


async def test_tokens_of_no_vocabulary_are_not_journaled(bench: Bench) -> None:
    _, record = bench.claim(1)
    record.add([1, 10**7])
    await bench.journaling.write()
    assert (bench.queue.calls, record.open) == ([], False)


async def test_a_claim_brings_its_journal(bench: Bench) -> None:
    claimed, record = bench.claim(1, Journal(REVISION, (1, 2, 3)))
    assert (record.token_ids, record.journaled, record.new_count) == ([1, 2, 3], 3, 0)
    record.reused = 3
    record.add([4])
    await bench.journaling.write()
    (entry,) = bench.queue.calls[0]
    assert (entry.start, list(entry.token_ids)) == (3, [4])
    bench.journaling.count(claimed, record)
    counts = bench.journaling.counts
    assert (counts.resumed_requests, counts.reused_tokens, counts.restarts) == (1, 3, {})


async def test_a_journal_of_another_revision_is_replaced(bench: Bench) -> None:
    claimed, record = bench.claim(1, Journal("another", (1, 2, 3)))
    assert (record.token_ids, record.journaled, record.restarted) == ([], 0, "revision")
    record.add([9])
    await bench.journaling.write()
    assert bench.queue.calls[0][0].start == 0
    bench.journaling.count(claimed, record)
    assert bench.journaling.counts.restarts == {"revision": 1}


@pytest.mark.parametrize("off", [{"tokens": 0}, {"revision": None}])
async def test_where_nothing_is_journaled_there_are_no_records(off: dict[str, Any]) -> None:
    bench = Bench(**off)
    _, record = bench.claim(1)
    _, other = bench.claim(2, Journal(REVISION, (1,)))
    assert (record, other) == (None, None)
    await bench.journaling.write()
    assert bench.queue.calls == []
    assert bench.journaling.counts.restarts == {"off": 1}


async def test_restarts_are_those_of_requests_that_had_begun(bench: Bench) -> None:
    for attempt, restarted in ((1, "sampling"), (2, "sampling"), (2, None)):
        claimed, record = bench.claim(attempt, attempt=attempt)
        if restarted:
            record.begin_anew(restarted)
        bench.journaling.count(claimed, record)
    assert bench.journaling.counts.restarts == {"sampling": 1}


def test_closed_records_take_nothing() -> None:
    told: list[int] = []
    record = TokenRecord(on_tokens=lambda: told.append(1))
    record.add([])
    record.add([1])
    record.close()
    record.add([2])
    assert (record.token_ids, record.new_count, told) == ([1], 0, [1])


@pytest.mark.parametrize(("tokens", "piece"), [(1, 1), (8, 1), (32, 4), (64, 8), (4_096, 8)])
async def test_pieces_are_small_beside_an_interval_and_beside_a_period(tokens: int, piece: int) -> None:
    _, record = Bench(tokens=tokens).claim(1)
    assert record.piece == piece
