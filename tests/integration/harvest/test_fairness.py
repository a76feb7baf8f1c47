"""Tenants at a controller and a replica, with a fake engine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis

from conserve.config import Settings
from conserve.engine.contract import OfflineResult, OnChunk, TokenRecord
from conserve.harvest.board import CapacityBoard
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from tests.integration.bench import MODEL, URL, Bench, make_input, stream
from tests.integration.harvest.conftest import make_board, running, wait_until
from tests.integration.harvest.fakes import FakeEngine


class ThirstyEngine(FakeEngine):
    """Its requests take so many tokens that turns are short, and so long that the controller hears of each."""

    async def offline(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        timeout_s: float,
        record: TokenRecord | None = None,
        *,
        on_chunk: OnChunk | None = None,
    ) -> OfflineResult:
        await asyncio.sleep(0.05)
        result = await super().offline(endpoint, body, timeout_s, record, on_chunk=on_chunk)
        return dataclasses.replace(result, prompt_tokens=700, output_tokens=300)


async def submit(bench: Bench, tenant: str, count: int) -> str:
    service = bench.service.for_tenant(tenant)
    content = make_input(count).replace(b"id-", f"{tenant}-".encode())
    file = await service.upload_file("in.jsonl", "batch", stream(content))
    return (await service.create_batch(file.id, URL, "24h")).id


async def share(bench: Bench, board: CapacityBoard, queue: JobQueue, settings: Settings) -> None:
    """Of the first requests of two tenants the share of each is that of its weight."""
    engine = ThirstyEngine()
    ids = [await submit(bench, tenant, 300) for tenant in ("a", "b")]
    await bench.keeper.run_once()

    async def enough() -> bool:
        return len(engine.asked) >= 240

    harvester = Harvester(engine, queue, bench.store, board, settings, "r1", MODEL)
    async with running(harvester.run()):
        await wait_until(enough)
    asked = Counter(content.split(" ")[1][0] for content in engine.asked[40:240])
    assert 2 < asked["a"] / asked["b"] < 4.5
    assert len(ids) == 2


def with_weights(fast: Settings) -> Settings:
    tenants = {"a": {"api_keys": ["key-a"], "weight": 3}, "b": {"api_keys": ["key-b"]}}
    return Settings.model_validate(fast.to_args() | {"tenants": tenants})


async def test_a_tenant_that_was_first_does_not_take_all(
    redis: Redis, store: FileStore, board: CapacityBoard, fast: Settings
) -> None:
    settings = with_weights(fast)
    bench, queue = Bench(redis, store, settings), JobQueue(redis, settings)
    weights = {name: tenant.weight for name, tenant in settings.tenants.items()}
    controller = HarvestController(board, queue, settings.harvest, weights)
    async with running(controller.run()):
        await share(bench, board, queue, settings)


async def test_replicas_share_by_the_same_rule_without_a_controller(
    redis: Redis, store: FileStore, forgetful: Settings
) -> None:
    settings = with_weights(forgetful)
    bench = Bench(redis, store, settings)
    await share(bench, make_board(redis, settings), bench.queue, settings)
