"""Several tenants at the routes of files and batches, as the official client sees them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from conserve.config import DEFAULT_TENANT, Settings
from conserve.jobs.errors import ApiError
from conserve.jobs.files import FileStore
from conserve.jobs.keys import Keys
from conserve.jobs.ledger import Holding
from tests.integration.bench import LONG_MS, MODEL, URL, Bench, make_input, stream
from tests.integration.jobs.test_batch_routes import BASE, make_app

KEYS = {"a": "sk-of-a", "b": "sk-of-b"}


def with_tenants(settings: Settings, **of_a: Any) -> Settings:
    digest = hashlib.sha256(KEYS["b"].encode()).hexdigest()
    tenants = {
        "a": {"api_keys": [KEYS["a"], "sk-another"], "weight": 3} | of_a,
        "b": {"api_keys": [f"sha256:{digest}"]},
        "default": {"api_keys": ["sk-old"]},
    }
    return Settings.model_validate(settings.model_dump(mode="json") | {"tenants": tenants})


class World:
    """A service with tenants, and their clients."""

    def __init__(self, redis: Redis, store: FileStore, settings: Settings, stack: AsyncExitStack) -> None:
        self.bench = Bench(redis, store, settings)
        self.ledger = self.bench.queue.ledger
        self._app = make_app(self.bench.service)
        self._stack = stack

    async def client(self, key: str) -> AsyncOpenAI:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(self._app), base_url=BASE)
        await self._stack.enter_async_context(http)
        return AsyncOpenAI(api_key=key, base_url=f"{BASE}/v1", http_client=http, max_retries=0)

    async def get(self, path: str, headers: dict[str, str]) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url=BASE) as http:
            return await http.get(path, headers=headers)


@asynccontextmanager
async def make_world(redis: Redis, store: FileStore, settings: Settings) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(redis, store, settings, stack)


@pytest.fixture
async def world(redis: Redis, store: FileStore, settings: Settings) -> AsyncIterator[World]:
    async with make_world(redis, store, with_tenants(settings)) as world:
        yield world


async def submit(client: AsyncOpenAI, count: int = 2) -> str:
    file = await client.files.create(file=("in.jsonl", make_input(count)), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    return batch.id


async def finish(bench: Bench, batch_id: str, count: int = 2) -> None:
    # The answers are read as the tenant whose they are.
    batch = await bench.queue.get(batch_id)
    assert batch is not None
    own = Bench(bench.redis, bench.store, bench.settings)
    own.service = bench.service.for_tenant(batch.tenant)
    await own.finish(await own.queue.claim(batch_id, count, LONG_MS, "r"))
    for _ in range(4):
        await own.keeper.run_once()


async def test_nobody_sees_what_others_have(world: World) -> None:
    a, b = await world.client(KEYS["a"]), await world.client(KEYS["b"])
    batch_id = await submit(a)
    await world.bench.keeper.run_once()
    await finish(world.bench, batch_id)
    batch = await a.batches.retrieve(batch_id)
    assert batch.status == "completed"
    assert batch.output_file_id is not None
    assert len((await a.files.content(batch.output_file_id)).text.splitlines()) == 2
    another = await world.client("sk-another")
    assert [one.id for one in (await another.batches.list()).data] == [batch_id]
    assert {one.id for one in (await another.files.list()).data} == {batch.input_file_id, batch.output_file_id}

    assert (await b.batches.list()).data == []
    assert (await b.files.list()).data == []
    assert (await b.files.list(purpose="batch")).data == []
    for file_id in (batch.input_file_id, batch.output_file_id):
        for call in (b.files.retrieve, b.files.content, b.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(file_id)
        with pytest.raises(openai.NotFoundError):
            await b.files.list(after=file_id)
    with pytest.raises(openai.BadRequestError, match="No such File"):
        await b.batches.create(
            input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )


async def test_nobody_changes_what_others_have(world: World) -> None:
    a, b = await world.client(KEYS["a"]), await world.client(KEYS["b"])
    batch_id = await submit(a)
    await world.bench.keeper.run_once()
    for path, body in ((f"/batches/{batch_id}", {"priority": 5}), (f"/batches/{batch_id}/pause", None)):
        with pytest.raises(openai.NotFoundError):
            await b.post(path, cast_to=object, body=body)
    for path in (f"/batches/{batch_id}/results", f"/batches?after={batch_id}"):
        with pytest.raises(openai.NotFoundError):
            await b.get(path, cast_to=object)
    for call in (b.batches.retrieve, b.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await call(batch_id)
    batch = await a.batches.retrieve(batch_id)
    assert batch.status == "in_progress"
    assert (batch.model_extra or {})["priority"] == 0
    assert not {"tenant", "flex"} & (batch.model_extra or {}).keys()


async def test_without_a_key_that_is_known_there_is_nothing(world: World) -> None:
    unknown = await world.client("sk-unknown")
    with pytest.raises(openai.AuthenticationError) as refused:
        await unknown.batches.list()
    assert (refused.value.code, refused.value.type) == ("invalid_api_key", "invalid_request_error")
    assert "sk-unknown" not in str(refused.value.body)
    for path in ("/v1/files", "/v1/batches", "/v1/files/file-12345678", "/v1/batches/batch_12345678/results"):
        for headers in ({}, {"Authorization": "Basic x"}, {"Authorization": "Bearer "}, {"Authorization": "Bearer ü"}):
            answer = await world.get(path, {name: value.encode() for name, value in headers.items()})  # type: ignore[misc]
            assert answer.status_code == 401, path
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_what_was_there_before_is_the_default_tenant_s(
    redis: Redis, store: FileStore, settings: Settings
) -> None:
    before = Bench(redis, store, settings)
    batch_id = await before.start(2)
    keys = Keys(settings.jobs.namespace)
    file_id = (await before.get(batch_id)).input_file_id
    # As it was stored before there were tenants.
    await redis.hdel(keys.batch(batch_id).batch, "tenant", "tokens_guessed", "prefix")
    await redis.hdel(keys.file(file_id), "tenant", "lines")
    await redis.delete(keys.held, keys.used)
    async with make_world(redis, store, with_tenants(settings)) as world:
        old, a = await world.client("sk-old"), await world.client(KEYS["a"])
        assert [one.id for one in (await old.batches.list()).data] == [batch_id]
        assert [one.id for one in (await old.files.list()).data] == [file_id]
        with pytest.raises(openai.NotFoundError):
            await a.batches.retrieve(batch_id)
        await world.bench.keeper.run_once()
        assert (await world.ledger.used(DEFAULT_TENANT)).requests == 2
        await finish(world.bench, batch_id)
        assert (await old.batches.retrieve(batch_id)).status == "completed"
        assert (await old.files.delete(file_id)).deleted
        used = await world.ledger.used(DEFAULT_TENANT)
        assert (used.requests, used.tokens, used.files) == (0, 0, 1)


async def test_queued_requests_are_counted_until_they_are_done(
    redis: Redis, store: FileStore, settings: Settings
) -> None:
    async with make_world(redis, store, with_tenants(settings, max_queued_requests=5)) as world:
        a, b = await world.client(KEYS["a"]), await world.client(KEYS["b"])
        batch_id = await submit(a, 4)
        with pytest.raises(openai.RateLimitError, match="5 queued requests: you have 4, and this takes 2") as refused:
            await submit(a, 2)
        assert (refused.value.code, refused.value.param) == ("queued_requests_exceeded", "input_file_id")
        assert int(refused.value.response.headers["retry-after"]) > 0
        with pytest.raises(openai.RateLimitError, match="Waiting does not help") as refused:
            await submit(a, 6)
        assert "retry-after" not in refused.value.response.headers
        assert refused.value.response.headers["x-should-retry"] == "false"
        await submit(b, 6)
        await world.bench.keeper.run_once()
        claimed = await world.bench.queue.claim(batch_id, 3, LONG_MS, "r")
        await world.bench.queue.commit(batch_id, await write(world.bench, claimed))
        await world.bench.keeper.run_once()
        assert (await world.ledger.used("a")).requests == 1
        await submit(a, 4)
        assert (await world.ledger.used("a")).requests == 5
        await a.batches.cancel(batch_id)
        for _ in range(4):
            await world.bench.keeper.run_once()
        assert (await world.ledger.used("a")).requests == 4


async def write(bench: Bench, claimed: list[Any]) -> Any:
    bench.service = bench.service.for_tenant("a")
    return await bench.write(claimed)


async def test_tokens_in_flight_are_estimated(redis: Redis, store: FileStore, settings: Settings) -> None:
    async with make_world(redis, store, with_tenants(settings, max_tokens_in_flight=1_000)) as world:
        a = await world.client(KEYS["a"])
        await submit(a, 2)
        used = (await world.ledger.used("a")).tokens
        assert 2 * 256 < used < 1_000
        with pytest.raises(openai.RateLimitError, match="1000 tokens in flight") as refused:
            await submit(a, 2)
        assert refused.value.code == "tokens_in_flight_exceeded"


async def test_files_and_their_bytes_are_counted_until_they_are_deleted(
    redis: Redis, store: FileStore, settings: Settings
) -> None:
    async with make_world(redis, store, with_tenants(settings, max_files=2, max_bytes=1_000)) as world:
        a = await world.client(KEYS["a"])
        with pytest.raises(openai.RateLimitError, match="1000 bytes of files: you have 0, and this takes 1001") as full:
            await a.files.create(file=("x", b"x" * 1_001), purpose="batch")
        assert (full.value.code, full.value.param) == ("file_bytes_exceeded", "file")
        files = [await a.files.create(file=("x", b"x" * 500), purpose="batch") for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="2 files: you have 2") as full:
            await a.files.create(file=("x", b""), purpose="batch")
        assert full.value.response.headers["x-should-retry"] == "false"
        await a.files.delete(files[0].id)
        with pytest.raises(openai.NotFoundError):
            await a.files.delete(files[0].id)
        assert await world.ledger.used("a") == Holding(files=1, bytes=500)
        await a.files.create(file=("x", b"x" * 500), purpose="batch")
        stored = [path for path in (settings.state_dir / "files" / "files").iterdir() if path.is_file()]
        assert len(stored) == 2


async def test_a_deletion_that_broke_off_is_made_up_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    of_a = world.bench.service.for_tenant("a")
    file = await of_a.upload_file("in.jsonl", "batch", stream(make_input(1)))
    catalog = world.bench.service._retention._catalog

    async def crash(file_id: str) -> None:
        raise RuntimeError("the process ended")

    with monkeypatch.context() as patch:
        patch.setattr(catalog.ledger, "drop", crash)
        with pytest.raises(RuntimeError):
            await of_a.delete_file(file.id)
    assert (await world.ledger.used("a")).files == 1
    await catalog.look_again(file.id, 1)
    assert await world.bench.service._retention.sweep() == 1
    assert await world.ledger.used("a") == Holding()
    assert (await of_a.list_files()).data == []


async def test_batches_that_begin_alike_are_known(world: World) -> None:
    system = {"role": "system", "content": "You are a careful assistant. " * 30}
    bodies = [{"model": MODEL, "messages": [system, {"role": "user", "content": str(number)}]} for number in range(3)]
    lines = [
        json.dumps({"custom_id": str(number), "method": "POST", "url": URL, "body": body}).encode()
        for number, body in enumerate(bodies)
    ]
    service = world.bench.service.for_tenant("a")
    ids = []
    for content in (b"\n".join(lines[:2]), lines[2], make_input(2)):
        file = await service.upload_file("in.jsonl", "batch", stream(content))
        ids.append((await service.create_batch(file.id, URL, "24h")).id)
    await world.bench.keeper.run_once()
    first, second, third = (batch.prefix for batch in await world.bench.queue.active_summaries(ids))
    assert first == second != ""
    assert third == ""


async def test_one_tenant_cannot_take_all_batches(redis: Redis, store: FileStore, settings: Settings) -> None:
    few = Settings.model_validate(
        settings.model_dump(mode="json") | {"jobs": settings.jobs.model_dump() | {"max_active_batches": 4}}
    )
    async with make_world(redis, store, with_tenants(few)) as world:
        a, b = await world.client(KEYS["a"]), await world.client(KEYS["b"])
        batch_id = await submit(a)
        await submit(a)
        for _ in range(2):  # Before and after the keeper has counted them.
            with pytest.raises(openai.RateLimitError, match="Your limit is 2 batches") as refused:
                await submit(a)
            assert refused.value.code == "batches_exceeded"
            assert int(refused.value.response.headers["retry-after"]) > 0
            await world.bench.keeper.run_once()
        await submit(b)
        await finish(world.bench, batch_id)
        await submit(a)
        await submit(b)
        with pytest.raises(openai.RateLimitError) as refused:
            await submit(b)
        assert refused.value.code == "too_many_batches"


async def test_one_tenant_cannot_take_all_streams(redis: Redis, store: FileStore, settings: Settings) -> None:
    few = Settings.model_validate(
        settings.model_dump(mode="json") | {"jobs": settings.jobs.model_dump() | {"max_result_streams": 3}}
    )
    async with make_world(redis, store, with_tenants(few, max_result_streams=1)) as world:
        streams = {}
        for name in KEYS:
            streams[name] = (await submit(await world.client(KEYS[name])), world.bench.service.for_tenant(name))
        await world.bench.keeper.run_once()

        async def open_one(name: str) -> AsyncGenerator[bytes, None]:
            batch_id, service = streams[name]
            return await service.stream_results(batch_id, follow=True)

        opened = [await open_one("a")]
        with pytest.raises(ApiError, match="Your limit is 1 streams of results") as own:
            await open_one("a")
        assert (own.value.status, own.value.code) == (429, "result_streams_exceeded")
        opened += [await open_one("b"), await open_one("b")]  # Half of them: nothing else is said for it.
        with pytest.raises(ApiError) as full:
            await open_one("b")
        assert full.value.code == "result_streams_exceeded"
        for one in opened:
            await one.aclose()
        await (await open_one("a")).aclose()
