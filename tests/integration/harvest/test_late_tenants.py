"""Where deadlines and tenants meet, on a real server with a fake engine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.deadline_watch import DeadlineWatch
from conserve.harvest.harvester import Harvester
from conserve.jobs.capacity_store import CapacityStore, Watched
from conserve.jobs.errors import ApiError
from conserve.jobs.files import FileStore
from conserve.jobs.flex import FlexService
from conserve.policy.capacity import INTERVAL_S
from tests.integration.bench import MODEL, URL, Bench, make_line, stream
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.fakes import FakeEngine
from tests.integration.harvest.test_fairness import ThirstyEngine
from tests.integration.harvest.test_resuming import TOKENS, TokenEngine, kill

Make = Callable[[FakeEngine, str], Harvester]


async def start(bench: Bench, tenant: str, count: int, window: str = "24h", priority: int = 0) -> str:
    """A batch in progress whose requests name their tenant."""
    service = bench.service.for_tenant(tenant)
    lines = [make_line(f"{tenant}-{number}") for number in range(count)]
    for line in lines:
        line["body"] |= {"temperature": 0}
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = await service.upload_file("in.jsonl", "batch", stream(content))
    batch_id = (await service.create_batch(file.id, URL, window, priority=priority)).id
    await bench.keeper.run_once()
    return batch_id


async def see(kept: CapacityStore, rate: float) -> float:
    """Puts up a capacity of the latest hour. Returns the time, Unix seconds."""
    now_ms = await kept.read_now_ms()
    now = now_ms // 300_000
    seen = dict.fromkeys(range(now - 12, now), (rate * INTERVAL_S, INTERVAL_S))
    await kept.write(MODEL, seen, [], Watched(at_ms=now_ms))
    return now_ms / 1000


@pytest.fixture
def kept(redis: Redis, settings: Settings) -> CapacityStore:
    return CapacityStore(redis, settings.jobs.namespace)


@pytest.mark.parametrize("is_promised", [False, True])
async def test_a_late_batch_takes_all_places_only_if_it_was_promised_its_window(
    bench: Bench, board: CapacityBoard, kept: CapacityStore, make_harvester: Make, fast: Settings, is_promised: bool
) -> None:
    if is_promised:
        await see(kept, 1_000.0)
    late = await start(bench, "a", 200)
    await start(bench, "b", 200)
    batch = await bench.service.for_tenant("a").get_batch(late)
    assert batch.admission == ("fits" if is_promised else "unknown")
    controller = HarvestController(board, bench.queue, fast.harvest, None, lambda: {late: 1.0})
    engine = ThirstyEngine()

    async def enough() -> bool:
        return len(engine.asked) >= 140

    async with running(controller.run()), running(make_harvester(engine, "r1").run()):
        await wait_until(enough)
    asked = Counter(content.split(" ")[1][0] for content in engine.asked[20:140])
    if is_promised:
        # Half without; between two words of the controller, which a busy machine delays, both take turns.
        assert asked["a"] > 66
    else:
        assert 0.35 < asked["b"] / 120 < 0.65


async def test_ends_are_predicted_as_tenants_share(
    redis: Redis, store: FileStore, board: CapacityBoard, kept: CapacityStore, fast: Settings
) -> None:
    tenants = {"a": {"api_keys": ["key-a"], "weight": 3}, "b": {"api_keys": ["key-b"]}}
    settings = Settings.model_validate(fast.to_args() | {"tenants": tenants})
    bench = Bench(redis, store, settings)
    batches = {"a": await start(bench, "a", 60), "b": await start(bench, "b", 20, priority=9)}
    now_s = await see(kept, 1.0)
    watch = DeadlineWatch(board, bench.queue, kept, settings, [MODEL])
    outlooks = await watch.step()
    total = sum(batch.work_tokens for batch in await bench.queue.active_summaries())
    # With three times the work and three times the weight, both are done at the end.
    for batch_id in batches.values():
        assert (outlooks[batch_id].end_s or 0) - now_s == pytest.approx(total, rel=0.02)


async def journaled(redis: Redis, bench: Bench, batch_id: str) -> list[int]:
    """Tokens in the journals of a batch's requests."""
    fields = await redis.hgetall(f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}:journal")
    return [int(head.split("|")[0]) for line, head in fields.items() if ":" not in line]


async def test_a_late_batch_of_a_tenant_goes_on_first_and_mid_answer_on_another_replica(
    redis: Redis, store: FileStore, board: CapacityBoard, kept: CapacityStore, fast: Settings
) -> None:
    raw = fast.model_dump()
    settings = Settings.model_validate(raw | {"jobs": raw["jobs"] | {"journal_tokens": 10, "journal_period_s": 0.05}})
    bench = Bench(redis, store, settings)
    await see(kept, 1_000.0)
    await start(bench, "a", 9, priority=9)
    late = await start(bench, "b", 3)
    controller = HarvestController(board, bench.queue, settings.harvest, None, lambda: {late: 1.0})
    engine, heir_engine = TokenEngine(37), TokenEngine()

    def make(engine: FakeEngine, name: str) -> Harvester:
        return Harvester(engine, bench.queue, store, board, settings, name, MODEL, "0123456789abcdef")

    async def stands_still() -> bool:
        return await journaled(redis, bench, late) == [37] * 3

    async def done() -> bool:
        await bench.keeper.run_once()
        batch = await bench.service.for_tenant("b").get_batch(late)
        return batch.request_counts.completed == 3

    async with running(controller.run()):
        victim = make(engine, "victim")
        async with running(victim.run()):
            await wait_until(stands_still)
        await kill(victim, redis)
        bench.now_s += 1_000  # The keeper leaves leases alone for a while after its start.
        async with running(make(heir_engine, "heir").run()):
            await wait_until(done)
    of_late = {content: tokens for content, tokens in heir_engine.generated.items() if content.startswith("say b")}
    assert of_late == {f"say b-{number}": TOKENS - 37 for number in range(3)}
    # Those of one claim come to the engine in any order; there was room for one more than the late ones.
    assert len(engine.asked) == 4
    assert of_late.keys() < set(engine.asked)
    batch = await bench.service.for_tenant("b").get_batch(late)
    assert (batch.usage.output_tokens, batch.request_counts.failed) == (3 * TOKENS, 0)


async def test_flex_requests_are_promised_nothing_and_not_watched(
    redis: Redis, store: FileStore, board: CapacityBoard, kept: CapacityStore, bench: Bench, fast: Settings
) -> None:
    await see(kept, 10.0)
    service = FlexService(redis, store, fast, [MODEL])
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "service_tier": "flex"}

    def look_afresh() -> tuple[Bench, DeadlineWatch]:
        """What has read nothing yet of batches that are changed here as nobody else changes them."""
        fresh = Bench(redis, store, fast)
        return fresh, DeadlineWatch(board, fresh.queue, kept, fast, [MODEL])

    async def is_in_progress() -> bool:
        await bench.keeper.run_once()
        return [one.status for one in await bench.queue.active_summaries()] == ["in_progress"]

    async with running(service.run()), running(service.answer("a", URL, asked)):
        await wait_until(is_in_progress)
        (flex,) = await bench.queue.active_summaries()
        key = f"{fast.jobs.namespace}:batch:{{{flex.batch_id}}}"
        client: Any = redis
        await client.hset(key, "work_tokens", "1000000")
        fresh, watch = look_afresh()
        batch_id = await start(fresh, "b", 20, "1h")
        assert (await fresh.service.for_tenant("b").get_batch(batch_id)).admission == "fits"
        assert set(await watch.step()) == {batch_id}
        assert watch.urgencies == {}
        # The same work in a batch would be in the way.
        await client.hdel(key, "flex")
        fresh, watch = look_afresh()
        with pytest.raises(ApiError, match="too short"):
            await start(fresh, "b", 20, "1h")
        assert set(await watch.step()) == {batch_id, flex.batch_id}
