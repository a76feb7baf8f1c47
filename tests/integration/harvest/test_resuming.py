"""Replicas that die, drain or lose their lease in the middle of answers, and those that go on with them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from conserve.config import Settings
from conserve.engine.contract import EngineDied, OfflineResult, TokenRecord
from conserve.harvest import harvester as harvesting
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs.files import FileStore
from conserve.jobs.keys import Keys
from conserve.jobs.queue import JobQueue
from tests.integration.bench import MODEL, Bench, make_line
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.fakes import FakeEngine

TOKENS = 100
REVISION = "0123456789abcdef"


class TokenEngine(FakeEngine):
    """Answers with so many tokens, one by one, and goes on after those in the record.

    Attributes:
        until: No answer gets further than this.
        dies_at: The engine ends when an answer gets so far.
        generated: Tokens that were made, by content.
    """

    def __init__(self, until: int = TOKENS) -> None:
        super().__init__()
        self.until = until
        self.dies_at: int | None = None
        self.generated: Counter[str] = Counter()

    async def offline(
        self, endpoint: str, body: Mapping[str, Any], timeout_s: float, record: TokenRecord | None = None
    ) -> OfflineResult:
        content = body["messages"][0]["content"]
        self.asked.append(content)
        record = record or TokenRecord()
        token_ids = list(record.token_ids)
        record.reused = len(token_ids)
        self.running += 1
        try:
            while len(token_ids) < TOKENS:
                while len(token_ids) >= self.until:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0)
                if len(token_ids) == self.dies_at:
                    self.dies_at = None
                    raise EngineDied("the engine ended")
                token_ids.append(make_token(content, len(token_ids)))
                self.generated[content] += 1
                if len(token_ids) < TOKENS:
                    record.add(token_ids[-1:])
        finally:
            self.running -= 1
        expected = [make_token(content, place) for place in range(TOKENS)]
        assert token_ids == expected, "the tokens of another request, or out of their order"
        return OfflineResult(200, {"id": content, "echo": content}, 7, TOKENS)


def make_token(content: str, place: int) -> int:
    return (sum(content.encode()) * 1_000 + place) % 150_000


@pytest.fixture
def greedy(fast: Settings) -> Settings:
    raw = fast.model_dump()
    return Settings.model_validate(raw | {"jobs": raw["jobs"] | {"journal_tokens": 10, "journal_period_s": 0.05}})


@pytest.fixture
def make_replica(redis: Redis, store: FileStore, board: CapacityBoard, greedy: Settings) -> Any:
    def make(engine: FakeEngine, name: str, revision: str | None = REVISION, **jobs: Any) -> Harvester:
        raw = greedy.model_dump()
        settings = Settings.model_validate(raw | {"jobs": raw["jobs"] | jobs})
        return Harvester(engine, JobQueue(redis, settings), store, board, settings, name, MODEL, revision)

    return make


async def start(bench: Bench, count: int, **changes: Any) -> str:
    """A batch of requests that can be continued."""
    lines = [make_line(f"id-{number}") for number in range(1, count + 1)]
    for line in lines:
        line["body"] |= {"temperature": 0} | changes
    batch_id = await bench.submit(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    await bench.keeper.run_once()
    return batch_id


async def journaled(redis: Redis, bench: Bench, batch_id: str) -> dict[int, int]:
    """Line -> tokens in its journal."""
    fields = await redis.hgetall(f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}:journal")
    return {int(line): int(head.split("|")[0]) for line, head in fields.items() if ":" not in line}


async def kill(harvester: Harvester, redis: Redis) -> None:
    """Ends what is left of a replica whose loops were cancelled, without a word to anybody, and lets time pass.

    What it has said is not heard any more, and its leases have run out.
    """
    held = harvester._held
    tasks = [task for batch_id in held.batch_ids() for task in harvester._cancel_running(batch_id)]
    if tasks:
        await asyncio.wait(tasks)
    for batch_id in held.batch_ids():
        await let_leases_run_out(redis, harvester._settings, batch_id, *held.fences(batch_id))
    await harvester._board.remove_report(harvester._replica_id)


async def let_leases_run_out(redis: Redis, settings: Settings, batch_id: str, *lines: int) -> None:
    await redis.zadd(Keys(settings.jobs.namespace).batch(batch_id).leases, dict.fromkeys(map(str, lines), 1), xx=True)


async def finish(bench: Bench, controller: HarvestController, heir: Harvester, batch_id: str) -> list[str]:
    """Has a replica end a batch; returns the custom ids in the output file."""

    async def done() -> bool:
        await bench.keeper.run_once()
        counts = (await bench.get(batch_id)).request_counts
        return counts.completed + counts.failed == counts.total

    bench.now_s += 1_000  # The keeper leaves leases alone for a while after its start.
    async with running(controller.run()), running(heir.run()):
        await wait_until(done)
    batch, output, errors = await bench.end(batch_id)
    assert (batch.status, errors) == ("completed", {})
    assert batch.usage.output_tokens == TOKENS * len(output)
    return output


@pytest.mark.parametrize("until", [3, 37, 99])
async def test_a_replica_that_dies_costs_an_interval_of_tokens(
    bench: Bench, controller: HarvestController, make_replica: Any, redis: Redis, until: int
) -> None:
    engine, batch_id = TokenEngine(until), await start(bench, 3)
    victim = make_replica(engine, "victim")

    async def stands_still() -> bool:
        return list((await journaled(redis, bench, batch_id)).values()) == [until] * 3

    async with running(controller.run()), running(victim.run()):
        await wait_until(stands_still)
        engine.until += 0 if until == 99 else 9  # Some more, fewer than an interval; killed at the same moment.
    await kill(victim, redis)
    heir_engine = TokenEngine()
    heir = make_replica(heir_engine, "heir")
    assert len(await finish(bench, controller, heir, batch_id)) == 3
    assert set(heir_engine.generated.values()) == {TOKENS - until}
    counts = heir._journaling.counts
    assert (counts.resumed_requests, counts.reused_tokens, counts.restarts) == (3, 3 * until, {})
    assert await journaled(redis, bench, batch_id) == {}


async def test_a_drained_replica_gives_its_work_back_with_all_its_tokens(
    bench: Bench, controller: HarvestController, make_replica: Any, redis: Redis
) -> None:
    engine, batch_id = TokenEngine(61), await start(bench, 4)
    leaver = make_replica(engine, "leaver", journal_tokens=1_000, journal_period_s=3_600)

    async def stands_still() -> bool:
        return list(engine.generated.values()) == [61] * 4

    async with running(controller.run()), running(leaver.run()):
        await wait_until(stands_still)
    assert await journaled(redis, bench, batch_id) == {}
    await leaver.drain()
    assert await journaled(redis, bench, batch_id) == dict.fromkeys([1, 2, 3, 4], 61)
    heir_engine = TokenEngine()
    await finish(bench, controller, make_replica(heir_engine, "heir"), batch_id)
    assert set(heir_engine.generated.values()) == {TOKENS - 61}


async def test_an_engine_that_ends_leaves_all_its_tokens(
    bench: Bench, controller: HarvestController, make_replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvesting, "FAULT_PAUSE_S", 0.01)
    engine, batch_id = TokenEngine(), await start(bench, 1)
    engine.dies_at = 57
    replica = make_replica(engine, "r1", journal_tokens=1_000, journal_period_s=3_600)
    await finish(bench, controller, replica, batch_id)
    assert engine.asked == ["say id-1"] * 2
    assert engine.generated["say id-1"] == TOKENS
    assert [str(one.kind) for one in await bench.queue.failures(batch_id, 1)] == ["engine_died"]


async def test_a_replica_that_has_lost_its_lease_writes_nothing_more(
    bench: Bench, controller: HarvestController, make_replica: Any, redis: Redis
) -> None:
    engine, batch_id = TokenEngine(20), await start(bench, 1)
    loser = make_replica(engine, "loser")

    async def stands_still() -> bool:
        return await journaled(redis, bench, batch_id) == {1: 20}

    async with running(controller.run()), running(loser.run()):
        await wait_until(stands_still)
    # Cut off, but it works on.
    await let_leases_run_out(redis, bench.settings, batch_id, 1)
    bench.now_s += 1_000
    await bench.keeper.run_once()
    (heir,) = await bench.queue.claim(batch_id, 1, 60_000, "heir")
    assert heir.journal is not None
    assert len(heir.journal.token_ids) == 20
    engine.until = 40

    async def works_on() -> bool:
        return engine.generated["say id-1"] == 40

    await wait_until(works_on)
    await loser._journaling.write()
    assert await journaled(redis, bench, batch_id) == {1: 20}
    await kill(loser, redis)


async def test_tokens_of_another_model_are_not_used(
    bench: Bench, controller: HarvestController, make_replica: Any, redis: Redis
) -> None:
    engine, batch_id = TokenEngine(50), await start(bench, 2)
    leaver = make_replica(engine, "leaver", "another model")

    async def stands_still() -> bool:
        return list((await journaled(redis, bench, batch_id)).values()) == [50] * 2

    async with running(controller.run()), running(leaver.run()):
        await wait_until(stands_still)
    await leaver.drain()
    heir_engine = TokenEngine()
    heir = make_replica(heir_engine, "heir")
    await finish(bench, controller, heir, batch_id)
    assert set(heir_engine.generated.values()) == {TOKENS}
    assert heir._journaling.counts.restarts == {"revision": 2}


async def test_requests_that_cannot_be_continued_are_not_journaled(
    bench: Bench, controller: HarvestController, make_replica: Any, redis: Redis
) -> None:
    engine, batch_id = TokenEngine(50), await start(bench, 2, temperature=0.7)
    leaver = make_replica(engine, "leaver")

    async def stands_still() -> bool:
        return list(engine.generated.values()) == [50] * 2

    async with running(controller.run()), running(leaver.run()):
        await wait_until(stands_still)
    await leaver.drain()
    assert await journaled(redis, bench, batch_id) == {}
    assert leaver._journaling.counts.journaled_tokens == 0
    heir_engine = TokenEngine()
    await finish(bench, controller, make_replica(heir_engine, "heir"), batch_id)
    assert set(heir_engine.generated.values()) == {TOKENS}


@pytest.mark.parametrize(("revision", "tokens"), [(None, 10), (REVISION, 0)])
async def test_a_replica_that_journals_nothing_begins_anew(
    bench: Bench, controller: HarvestController, make_replica: Any, redis: Redis, revision: str | None, tokens: int
) -> None:
    engine, batch_id = TokenEngine(50), await start(bench, 1)
    leaver = make_replica(engine, "leaver")

    async def stands_still() -> bool:
        return await journaled(redis, bench, batch_id) == {1: 50}

    async with running(controller.run()), running(leaver.run()):
        await wait_until(stands_still)
    await leaver.drain()
    heir_engine = TokenEngine()
    heir = make_replica(heir_engine, "heir", revision, journal_tokens=tokens)
    await finish(bench, controller, heir, batch_id)
    assert heir_engine.generated["say id-1"] == TOKENS
    assert (heir._journaling.counts.restarts, heir._journaling.counts.journaled_tokens) == ({"off": 1}, 0)


async def test_many_requests_are_written_in_few_calls_and_after_an_outage(
    bench: Bench, controller: HarvestController, make_replica: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvesting, "RETRY_S", 0.01)
    real, calls, away = JobQueue.journal, [], [True]

    async def journal(self: JobQueue, batch_id: str, revision: str, entries: Any) -> dict[int, int]:
        calls.append(len(entries))
        if away[0]:
            raise RedisConnectionError("away")
        return await real(self, batch_id, revision, entries)

    monkeypatch.setattr(JobQueue, "journal", journal)
    engine, batch_id = TokenEngine(50), await start(bench, 4)
    replica = make_replica(engine, "r1", journal_tokens=25, journal_period_s=0)

    async def stands_still() -> bool:
        return list(engine.generated.values()) == [50] * 4 and len(calls) > 3

    async with running(controller.run()), running(replica.run()):
        await wait_until(stands_still)
        assert await journaled(redis, bench, batch_id) == {}
        away[0] = False
        engine.until = 51
        await replica._journaling.write()
        assert replica._journaling.counts.journaled_tokens >= 200
        engine.until = 99
        before = len(calls)
        await wait_until(lambda: _has_generated(engine, 99))
        await replica._journaling.write()
        assert len(calls) - before < 20, "not one call for each token or request"
    await replica.drain()
    assert await journaled(redis, bench, batch_id) == dict.fromkeys([1, 2, 3, 4], 99)


async def _has_generated(engine: TokenEngine, tokens: int) -> bool:
    return list(engine.generated.values()) == [tokens] * 4


async def test_the_report_says_what_was_saved(
    bench: Bench, controller: HarvestController, make_replica: Any, board: CapacityBoard
) -> None:
    engine, batch_id = TokenEngine(50), await start(bench, 1)

    async def reported() -> bool:
        return [report.journaled_tokens for report in await board.read_reports()] == [50]

    async with running(controller.run()), running((replica := make_replica(engine, "r1")).run()):
        await wait_until(reported)
    await replica.drain()
    heir = make_replica(TokenEngine(60), "heir")

    async def reported_again() -> bool:
        reports = {report.replica_id: report for report in await board.read_reports()}
        return "heir" in reports and reports["heir"].journaled_tokens == 10

    async with running(controller.run()), running(heir.run()):
        await wait_until(reported_again)
    await heir.drain()
    assert heir._journaling.counts.reused_tokens == 50
    assert (await bench.get(batch_id)).status == "in_progress"
