"""Where deadlines and tenants meet, on a real server with a fake engine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.deadline_watch import DeadlineWatch
from conserve.harvest.harvester import Harvester
from conserve.jobs.capacity_store import CapacityStore, Watched
from conserve.jobs.files import FileStore
from conserve.policy.capacity import INTERVAL_S
from tests.integration.bench import MODEL, URL, Bench, make_line, stream
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.fakes import FakeEngine
from tests.integration.harvest.test_fairness import ThirstyEngine

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
        assert asked["a"] > 90
    else:
        assert 0.35 < asked["b"] / 120 < 0.65


async def test_ends_are_predicted_as_tenants_share(
    redis: Redis, store: FileStore, board: CapacityBoard, kept: CapacityStore, fast: Settings
) -> None:
    tenants = {"a": {"api_keys": ["key-a"], "weight": 3}, "b": {"api_keys": ["key-b"]}}
    settings = Settings.model_validate(fast.to_args() | {"tenants": tenants})
    bench = Bench(redis, store, settings)
    batches = {"a": await start(bench, "a", 60), "b": await start(bench, "b", 20, priority=9)}
    now_s = await see(kept, 10.0)
    watch = DeadlineWatch(board, bench.queue, kept, settings, [MODEL])
    outlooks = await watch.step()
    total = sum(batch.work_tokens for batch in await bench.queue.active_summaries())
    # With three times the work and three times the weight, both are done at the end.
    for batch_id in batches.values():
        assert (outlooks[batch_id].end_s or 0) - now_s == pytest.approx(total / 10, rel=0.02)
