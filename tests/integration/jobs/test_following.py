"""Results that are followed over HTTP, while the batch runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import httpx
import pytest

from conserve import Client
from conserve.client import api, retries
from conserve.jobs import result_feed
from tests.integration.bench import LONG_MS, TIMEOUT_S, Bench, make_input
from tests.integration.jobs.served_routes import serve_routes


@pytest.fixture
def base_url(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(result_feed, "_LONGEST_PAUSE_S", 0.1)
    with serve_routes(bench.settings) as url:
        yield url


async def work(bench: Bench, batch_id: str) -> None:
    while not (await bench.get(batch_id)).status.ended:
        await bench.keeper.run_once()
        if claimed := await bench.queue.claim(batch_id, 5, LONG_MS, "a"):
            await bench.finish(claimed)
        await asyncio.sleep(0.02)


async def follow(url: str, batch_id: str) -> list[str]:
    def read() -> list[bytes]:
        with Client(url) as client:
            return list(client.get(batch_id).lines())

    return [json.loads(line)["custom_id"] for line in await asyncio.to_thread(read)]


async def test_results_come_while_the_batch_runs(base_url: str, bench: Bench) -> None:
    batch_id = await bench.submit(make_input(40))
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        followed = group.create_task(follow(base_url, batch_id))
        group.create_task(work(bench, batch_id))
    assert followed.result() == [f"id-{number}" for number in range(1, 41)]
    assert await follow(base_url, batch_id) == followed.result()


async def test_connections_that_break_again_and_again_lose_nothing(
    base_url: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    real = api.split_lines
    broken = 0

    async def break_off(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        nonlocal broken
        number = 0
        async for line in real(pieces):
            if number == 3:
                broken += 1
                raise httpx.ReadError("broken")
            number += 1
            yield line

    monkeypatch.setattr(api, "split_lines", break_off)
    batch_id = await bench.submit(make_input(20))
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        followed = group.create_task(follow(base_url, batch_id))
        group.create_task(work(bench, batch_id))
    assert followed.result() == [f"id-{number}" for number in range(1, 21)]
    assert broken


async def test_a_client_that_leaves_makes_room(base_url: str, bench: Bench) -> None:
    batch_id = await bench.start(1)
    most = bench.settings.jobs.max_result_streams
    address = f"{base_url}/v1/batches/{batch_id}/results"
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=most + 8)) as client:
        streams = [client.stream("GET", address, params={"follow": True}) for _ in range(most)]
        opened = [await stream.__aenter__() for stream in streams]
        assert {response.status_code for response in opened} == {200}
        refused = await client.get(address)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
        assert int(refused.headers["retry-after"]) > 0
        for stream in streams:
            await stream.__aexit__(None, None, None)
        async with asyncio.timeout(TIMEOUT_S):
            while (await client.get(address)).status_code == 429:
                await asyncio.sleep(0.05)
