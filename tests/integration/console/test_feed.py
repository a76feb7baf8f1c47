"""The stream of events, without a browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.messages import CapacityReport
from conserve.jobs.api_keys import ApiKeyStore
from conserve.jobs.errors import ApiError
from conserve.jobs.key_ring import KeyRing
from conserve.jobs.queue import JobQueue
from conserve.jobs.tenants import find_tenants
from deployments.console import feed as feeds
from deployments.console.feed import ConsoleFeed, Sources
from tests.integration.bench import LONG_MS, TIMEOUT_S, URL, Bench, make_input, stream

TENANTS = {"a": {"api_keys": ["sk-a"]}, "b": {"api_keys": ["sk-b"]}}


class CountingBoard(CapacityBoard):
    """Counts how often it is read."""

    reads = 0

    async def read_reports(self) -> list[CapacityReport]:
        self.reads += 1
        return await super().read_reports()


class Stand:
    """A feed, and what it reads."""

    def __init__(self, redis: Redis, settings: Settings, period_s: float = 0.02) -> None:
        self.board = CountingBoard(redis, settings.jobs.namespace, LONG_MS)
        self.queue = JobQueue(redis, settings)
        self.is_away = self.is_ending = False
        self.feed = ConsoleFeed(self._find, settings, find_tenants(settings), lambda: self.is_ending, period_s)

    def _find(self) -> Sources | None:
        return None if self.is_away else Sources(self.board, self.queue)

    async def report(self, **more: Any) -> None:
        fields = {"replica_id": "r1", "model": "m", "state": "serving", "window": 8} | more
        await self.board.publish_report(CapacityReport.model_validate(fields))


@pytest.fixture
def stand(redis: Redis, settings: Settings) -> Stand:
    return Stand(redis, settings)


async def read(events: AsyncIterator[str], name: str) -> dict[str, Any]:
    """The next event of that name."""
    async with asyncio.timeout(TIMEOUT_S):
        async for event in events:
            if event.startswith(f"event: {name}\n"):
                assert event.endswith("\n\n")
                return dict(json.loads(event.split("\n")[1].removeprefix("data: ")))
    raise AssertionError("the stream has ended")


async def close(*streams: AsyncGenerator[str, None]) -> None:
    for one in streams:
        await one.aclose()


async def test_a_page_is_told_what_there_is_and_what_changes(stand: Stand) -> None:
    await stand.report(online_running=2, stops=5, latency={"default": {"ttft_p95_ms": 210.5}})
    events = await stand.feed.open(None)
    hello = await read(events, "hello")
    assert hello["objectives"] == {"default": {"ttft_slo_ms": 1000.0, "tbt_slo_ms": 100.0}}
    frame = await read(events, "replicas")
    (replica,) = frame["replicas"]
    assert (replica["online_running"], replica["stops"], replica["restored_tokens"]) == (2, 5, None)
    assert replica["latency"]["default"]["ttft_p95_ms"] == 210.5
    assert (frame["totals"]["serving"], frame["has_controller"]) == (1, False)
    await stand.report(online_running=3)
    while (await read(events, "replicas"))["totals"]["online_running"] != 3:
        pass
    await close(events)


async def test_redis_is_read_once_for_all_pages_and_not_at_all_without_any(stand: Stand) -> None:
    assert not stand.feed.is_reading
    streams = [await stand.feed.open(None) for _ in range(20)]
    for each in streams:
        await read(each, "replicas")
    before = stand.board.reads
    for _ in range(3):
        await asyncio.gather(*(read(each, "replicas") for each in streams))
    assert stand.board.reads - before <= 6
    await close(*streams)
    assert not stand.feed.is_reading
    assert stand.feed.open_count == 0
    before = stand.board.reads
    await asyncio.sleep(0.1)
    assert stand.board.reads == before


async def test_a_page_that_comes_back_is_told_the_state_of_now(stand: Stand) -> None:
    await stand.report(online_running=1)
    events = await stand.feed.open(None)
    await read(events, "replicas")
    await close(events)
    await stand.report(online_running=9)
    events = await stand.feed.open(None)
    assert (await read(events, "replicas"))["totals"]["online_running"] == 9
    await close(events)


async def test_while_redis_is_away_pages_are_told_so(stand: Stand) -> None:
    events = await stand.feed.open(None)
    await read(events, "replicas")
    stand.is_away = True
    assert "not available" in (await read(events, "away"))["reason"]
    stand.is_away = False
    await read(events, "replicas")
    await close(events)


async def test_a_fault_of_ours_is_said_and_gets_over(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    events = await stand.feed.open(None)
    await read(events, "replicas")

    async def fail() -> None:
        raise ValueError("of the test")

    with monkeypatch.context() as patch:
        patch.setattr(stand.board, "read_reports", fail)
        assert (await read(events, "away"))["reason"] == "the state could not be read"
    await read(events, "replicas")
    await close(events)


async def test_streams_are_bounded(redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "MOST_STREAMS", 2)
    stand = Stand(redis, settings)
    streams = [await stand.feed.open(None) for _ in range(2)]
    with pytest.raises(ApiError) as refused:
        await stand.feed.open(None)
    assert (refused.value.status, refused.value.headers()["Retry-After"]) == (429, "10")
    await close(streams.pop())
    streams.append(await stand.feed.open(None))
    await close(*streams)


async def test_a_tenant_cannot_take_all_streams(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "MOST_STREAMS", 2)
    stand = Stand(redis, Settings.model_validate(settings.model_dump(mode="json") | {"tenants": TENANTS}))
    of_a = await stand.feed.open("Bearer sk-a")
    with pytest.raises(ApiError, match="with this key"):
        await stand.feed.open("Bearer sk-a")
    await close(of_a, await stand.feed.open("Bearer sk-b"))


async def test_a_tenant_is_told_of_its_own_batches(redis: Redis, settings: Settings, bench: Bench) -> None:
    settings = Settings.model_validate(settings.model_dump(mode="json") | {"tenants": TENANTS})
    stand = Stand(redis, settings)
    service = Bench(redis, bench.store, settings).service
    ids = {}
    for tenant in ("a", "b"):
        own = service.for_tenant(tenant)
        file = await own.upload_file("in.jsonl", "batch", stream(make_input(1)))
        ids[tenant] = (await own.create_batch(file.id, URL, "24h")).id
    for tenant in ("a", "b"):
        events = await stand.feed.open(f"Bearer sk-{tenant}")
        assert (await read(events, "hello"))["tenant"] == tenant
        assert [one["id"] for one in (await read(events, "batches"))["batches"]] == [ids[tenant]]
        await close(events)


async def test_a_silent_stream_has_a_heartbeat(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "BEAT_S", 0.02)
    stand = Stand(redis, settings, period_s=3_600.0)
    events = await stand.feed.open(None)
    await read(events, "replicas")
    async with asyncio.timeout(TIMEOUT_S):
        assert [await anext(events) for _ in range(3)][-1] == feeds.BEAT
    await close(events)


async def test_streams_end_when_their_front_has_to_go(stand: Stand) -> None:
    events = await stand.feed.open(None)
    await read(events, "replicas")
    stand.is_ending = True
    async with asyncio.timeout(TIMEOUT_S):
        async for _ in events:
            pass
    assert stand.feed.open_count == 0


async def test_a_stream_ends_when_its_key_is_revoked(redis: Redis, settings: Settings, stand: Stand) -> None:
    store = ApiKeyStore(redis, settings.jobs.namespace)
    ring = KeyRing.following(settings, listens_on_loopback=True)
    feed = ConsoleFeed(stand._find, settings, find_tenants(settings, ring), period_s=0.02)
    _, key = await store.create("ci", "a")
    await ring.renew(store)
    events = await feed.open(f"Bearer {key}")
    await read(events, "replicas")
    await store.revoke(["ci"])
    await ring.renew(store)
    async with asyncio.timeout(TIMEOUT_S):
        async for _ in events:
            pass
    with pytest.raises(ApiError) as refused:
        await feed.open(f"Bearer {key}")
    assert refused.value.status == 401
