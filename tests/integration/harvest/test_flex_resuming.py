"""Flex requests whose replica dies in the middle of the answer, and those that run beside a late batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.config import DEFAULT_TENANT, Settings
from conserve.engine.contract import OfflineResult, OnChunk, TokenRecord
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs.files import FileStore
from conserve.jobs.flex import FlexService
from conserve.jobs.keys import Keys
from conserve.jobs.queue import JobQueue
from conserve.policy.resumption import Obstacle
from tests.integration.bench import MODEL, TIMEOUT_S, URL, Bench, make_line
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.fakes import FakeEngine
from tests.integration.harvest.test_flex import ask, change, clean_up
from tests.integration.harvest.test_resuming import REVISION, TOKENS, TokenEngine, journaled, kill

Make = Callable[[FakeEngine, str], Harvester]


class EitherEngine(TokenEngine):
    """Answers token by token, and word by word where it is to stream."""

    async def offline(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        timeout_s: float,
        record: TokenRecord | None = None,
        *,
        on_chunk: OnChunk | None = None,
    ) -> OfflineResult:
        if on_chunk is None:
            return await super().offline(endpoint, body, timeout_s, record)
        return await FakeEngine.offline(self, endpoint, body, timeout_s, record, on_chunk=on_chunk)


class Gate:
    """Lets so many words pass."""

    def __init__(self, words: int) -> None:
        self._left = words

    async def wait(self) -> bool:
        self._left -= 1
        if self._left < 0:
            await asyncio.Event().wait()
        return True


@pytest.fixture
def journaling(fast: Settings) -> Settings:
    return change(fast, jobs=fast.jobs.model_dump() | {"journal_tokens": 10, "journal_period_s": 0.05})


@pytest.fixture
def make_replica(redis: Redis, store: FileStore, board: CapacityBoard, journaling: Settings) -> Make:
    def make(engine: FakeEngine, name: str) -> Harvester:
        return Harvester(engine, JobQueue(redis, journaling), store, board, journaling, name, MODEL, REVISION)

    return make


@pytest.fixture
async def service(redis: Redis, store: FileStore, journaling: Settings) -> AsyncIterator[FlexService]:
    service = FlexService(redis, store, journaling, [MODEL])
    async with running(service.run()):
        yield service


async def test_a_whole_answer_goes_on_where_its_replica_died(
    redis: Redis, journaling: Settings, service: FlexService, controller: HarvestController, make_replica: Make
) -> None:
    bench = Bench(redis, FileStore(journaling.files_url), journaling)
    victim = make_replica(EitherEngine(37), "victim")

    async def stands_still() -> bool:
        found = await redis.zrange(Keys(journaling.jobs.namespace).flex, 0, -1)
        return bool(found) and await journaled(redis, bench, found[0]) == {1: 37}

    asking = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("one two", temperature=0)))
    async with running(controller.run()), running(victim.run()):
        await wait_until(stands_still)
    await kill(victim, redis)
    bench.now_s += bench.lease_s
    heir_engine = EitherEngine()
    heir = make_replica(heir_engine, "heir")
    async with running(bench.keeper.run(0.02)), running(controller.run()), running(heir.run()):
        async with asyncio.timeout(TIMEOUT_S):
            answer = await asking
    assert (answer["echo"], answer["service_tier"]) == ("one two", "flex")
    assert heir_engine.generated["one two"] == TOKENS - 37
    assert heir._journaling.counts.restarts == {}
    await clean_up(redis, journaling)


@pytest.mark.parametrize("words", [0, 1, 3])
async def test_a_streamed_answer_begins_anew_and_each_part_comes_once(
    redis: Redis,
    journaling: Settings,
    service: FlexService,
    controller: HarvestController,
    make_replica: Make,
    words: int,
) -> None:
    bench = Bench(redis, FileStore(journaling.files_url), journaling)
    engine = EitherEngine()
    engine.word_gate = Gate(words)  # type: ignore[assignment]
    victim = make_replica(engine, "victim")
    deltas: list[dict[str, Any]] = []

    async def listen() -> None:
        async for chunk in service.stream(DEFAULT_TENANT, URL, ask("one two three four", temperature=0)):
            deltas.extend(choice["delta"] for choice in chunk["choices"])

    async def has_come() -> bool:
        return engine.running == 1 and len(deltas) == words

    listening = asyncio.create_task(listen())
    async with running(controller.run()), running(victim.run()):
        await wait_until(has_come)
    await kill(victim, redis)
    bench.now_s += bench.lease_s
    heir = make_replica(EitherEngine(), "heir")
    async with running(bench.keeper.run(0.02)), running(controller.run()), running(heir.run()):
        async with asyncio.timeout(TIMEOUT_S):
            await listening
    assert [delta["content"] for delta in deltas if delta.get("content")] == ["one", " two", " three", " four"]
    assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
    assert heir._journaling.counts.restarts == {Obstacle.STREAM: 1}
    await clean_up(redis, journaling)


@pytest.mark.parametrize("urgency", [0.5, 1.0])
async def test_flex_beside_a_late_batch(
    redis: Redis, journaling: Settings, board: CapacityBoard, service: FlexService, make_replica: Make, urgency: float
) -> None:
    bench = Bench(redis, FileStore(journaling.files_url), journaling)
    lines = [json.dumps(make_line(f"late-{number}")).encode() + b"\n" for number in range(8)]
    late = await bench.submit(b"".join(lines))
    await bench.keeper.run_once()
    controller = HarvestController(board, bench.queue, journaling.harvest, None, lambda: {late: urgency})
    engine = FakeEngine()
    engine.gate.clear()
    asking = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("flex")))

    async def waits() -> bool:
        return await redis.zcard(Keys(journaling.jobs.namespace).flex) == 1

    async def full() -> bool:
        return engine.running == 4

    await wait_until(waits)
    async with running(controller.run()), running(make_replica(engine, "r1").run()):
        await wait_until(full)
        # One that will be late leaves nothing to others; one that may be leaves its part.
        assert ("flex" in engine.asked) is (urgency < 1)
        engine.gate.set()
        async with asyncio.timeout(TIMEOUT_S):
            answer = await asking
    assert answer["choices"][0]["message"]["content"] == "flex"
    assert engine.asked.count("flex") == 1
    await clean_up_but(redis, journaling, bench, late)


async def clean_up_but(redis: Redis, settings: Settings, bench: Bench, batch_id: str) -> None:
    """Until nothing but a batch is left."""
    keys = Keys(settings.jobs.namespace)

    async def is_alone() -> bool:
        await bench.keeper.run_once()
        return await redis.exists(keys.flex, keys.flex_over) == 0

    await wait_until(is_alone)
    assert (await bench.get(batch_id)).id == batch_id
