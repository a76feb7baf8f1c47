"""The routes as the official `openai` client sees them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

from conserve.config import Settings
from conserve.jobs.service import JobService
from deployments.api_errors import install_api_error_handlers
from deployments.batch_routes import build_batch_router
from tests.integration.bench import LONG_MS, MODEL, URL, Bench, make_input

BASE = "http://test"


def make_app(service: JobService) -> FastAPI:
    app = FastAPI()
    app.include_router(build_batch_router(lambda: service))
    install_api_error_handlers(app)
    return app


@pytest.fixture
async def http(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(bench.service)), base_url=BASE) as client:
        yield client


@pytest.fixture
async def client(http: httpx.AsyncClient) -> AsyncOpenAI:
    return AsyncOpenAI(api_key="none", base_url=f"{BASE}/v1", http_client=http, max_retries=0)


async def upload(client: AsyncOpenAI, content: bytes) -> str:
    return (await client.files.create(file=("in put\u00fc.jsonl", content), purpose="batch")).id


async def create(client: AsyncOpenAI, file_id: str, **changes: Any) -> str:
    arguments: dict[str, Any] = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"} | changes
    return (await client.batches.create(**arguments)).id


async def test_a_batch_from_upload_to_its_results(client: AsyncOpenAI, bench: Bench) -> None:
    content = make_input(3)
    file = await client.files.create(file=("in putü.jsonl", content), purpose="batch")
    assert (file.bytes, file.purpose, file.filename, file.status) == (
        len(content),
        "batch",
        "in putü.jsonl",
        "processed",
    )
    assert await client.files.retrieve(file.id) == file
    assert (await client.files.content(file.id)).content == content
    batch = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    assert (batch.status, batch.metadata, batch.completion_window) == ("validating", {"a": "b"}, "24h")
    assert batch.expires_at == batch.created_at + 86_400
    await bench.keeper.run_once()
    batch = await client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.total, batch.model) == ("in_progress", 3, MODEL)
    await bench.finish(await bench.queue.claim(batch.id, 3, LONG_MS, "a"))
    await bench.keeper.run_once()
    batch = await client.batches.retrieve(batch.id)
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.usage is not None
    assert batch.usage.total_tokens == 30
    assert batch.output_file_id is not None
    lines = (await client.files.content(batch.output_file_id)).text.splitlines()
    assert len(lines) == 3
    assert (await client.files.retrieve(batch.output_file_id)).purpose == "batch_output"


async def test_lists_follow_pages(client: AsyncOpenAI) -> None:
    file_id = await upload(client, b"x")
    ids = [await create(client, file_id, completion_window="90m") for _ in range(5)]
    found = [batch.id async for batch in client.batches.list(limit=2)]
    assert sorted(found) == sorted(ids)
    assert [file.id async for file in client.files.list(purpose="batch")] == [file_id]
    for other in ("batch_output", "fine-tune", "anything"):
        assert [file.id async for file in client.files.list(purpose=other)] == []
    assert [file.id async for file in client.files.list(order="asc", limit=1)] == [file_id]


async def test_cancelling_and_deleting(client: AsyncOpenAI, bench: Bench) -> None:
    file_id = await upload(client, make_input(1))
    batch_id = await create(client, file_id)
    with pytest.raises(openai.ConflictError, match="has not ended"):
        await client.files.delete(file_id)
    assert (await client.batches.cancel(batch_id)).status == "cancelling"
    assert (await client.batches.cancel(batch_id)).status == "cancelling"
    await bench.end(batch_id)
    assert (await client.batches.cancel(batch_id)).status == "cancelled", "whoever repeats a call is told the same"
    assert (await client.files.delete(file_id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file_id)


async def test_what_has_ended_is_not_cancelled(client: AsyncOpenAI, bench: Bench) -> None:
    batch_id = await create(client, await upload(client, b"{"))
    assert (await bench.end(batch_id))[0].status == "failed"
    with pytest.raises(openai.ConflictError, match="'failed'") as refused:
        await client.batches.cancel(batch_id)
    assert refused.value.code == "batch_not_cancellable"


BAD_BATCHES: list[tuple[dict[str, Any], str, str]] = [
    ({"input_file_id": "file-0123456789"}, "input_file_id", "No such File"),
    ({"input_file_id": "../x"}, "input_file_id", "No such File"),
    ({"input_file_id": 7}, "input_file_id", "string"),
    ({"endpoint": "/v1/embeddings"}, "endpoint", "/v1/completions"),
    ({"completion_window": "1w"}, "completion_window", "24h"),
    ({"completion_window": "400d"}, "completion_window", "30d"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "16"),
    ({"metadata": {"k" * 65: "x"}}, "metadata", "64"),
    ({"metadata": {"k": "x" * 513}}, "metadata", "512"),
    ({"metadata": {"k": 1}}, "metadata", "string"),
    ({"extra_body": {"colour": "red"}}, "colour", "Unknown"),
    ({"extra_body": {"\u00fc": "red"}}, "\u00fc", "Unknown"),
    ({"extra_body": {"priority": 101}}, "priority", "between -100 and 100"),
    ({"extra_body": {"priority": "high"}}, "priority", "integer"),
    ({"output_expires_after": {"anchor": "created_at", "seconds": 3_599}}, "output_expires_after", "3600"),
    ({"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}}, "output_expires_after", "2592000"),
    ({"output_expires_after": {"anchor": "now", "seconds": 3_600}}, "output_expires_after", "created_at"),
    ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after.seconds", "Missing"),
]


@pytest.mark.parametrize(("changes", "param", "text"), BAD_BATCHES)
async def test_a_bad_batch_is_refused(client: AsyncOpenAI, changes: dict[str, Any], param: str, text: str) -> None:
    file_id = await upload(client, b"x")
    with pytest.raises(openai.BadRequestError, match=text) as refused:
        await create(client, **({"file_id": file_id} | changes))
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert (await client.batches.list()).data == []
    assert (await client.files.delete(file_id)).deleted, "nothing pins the file"


async def test_a_missing_field_and_a_broken_body(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/batches", json={"endpoint": URL, "completion_window": "24h"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input_file_id"
    answer = await http.post("/v1/batches", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]
    for path, query, param in (
        ("/v1/batches", {"limit": "many"}, "limit"),
        ("/v1/batches", {"limit": "101"}, "limit"),
        ("/v1/batches", {"order": "asc"}, "order"),
        ("/v1/files", {"limit": "0"}, "limit"),
        ("/v1/files", {"limit": "10001"}, "limit"),
        ("/v1/files", {"order": "up"}, "order"),
        ("/v1/batches/batch_0123456789/results", {"after": "-1"}, "after"),
    ):
        answer = await http.get(path, params=query)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_an_output_file_is_no_input(client: AsyncOpenAI, bench: Bench) -> None:
    batch_id = await bench.start(1)
    await bench.service.cancel_batch(batch_id)
    batch, _, _ = await bench.end(batch_id)
    assert batch.error_file_id is not None
    with pytest.raises(openai.BadRequestError, match="batch_output"):
        await create(client, batch.error_file_id)


async def test_unknown_ids(client: AsyncOpenAI) -> None:
    for unknown in ("batch_0123456789", "nonsense"):
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve(unknown)
        with pytest.raises(openai.NotFoundError):
            await client.batches.cancel(unknown)
        with pytest.raises(openai.NotFoundError):
            await client.batches.list(after=unknown)
    for unknown in ("file-0123456789", "nonsense"):
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(unknown)
        with pytest.raises(openai.NotFoundError):
            await client.files.content(unknown)
        with pytest.raises(openai.NotFoundError):
            await client.files.delete(unknown)


ANCHOR = {"expires_after[anchor]": "created_at"}


@pytest.mark.parametrize(
    ("form", "files", "param"),
    [
        ({"purpose": "fine-tune"}, {"file": b"x"}, "purpose"),
        ({}, {"file": b"x"}, "purpose"),
        ({"purpose": "batch"}, {"other": b"x"}, "file"),
        ({"purpose": "batch", "file": "text"}, {"other": b"x"}, "file"),
        ({"purpose": "batch", "colour": "red"}, {"file": b"x"}, "colour"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, {"file": b"x"}, "expires_after.seconds"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, {"file": b"x"}, "expires_after.anchor"),
        ({"purpose": "batch", "expires_after[seconds]": "1", **ANCHOR}, {"file": b"x"}, "expires_after"),
        ({"purpose": "batch", "expires_after[seconds]": "soon", **ANCHOR}, {"file": b"x"}, "expires_after"),
    ],
)
async def test_a_bad_upload_is_refused(
    http: httpx.AsyncClient, form: dict[str, str], files: dict[str, bytes], param: str
) -> None:
    answer = await http.post("/v1/files", data=form, files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_an_upload_that_is_no_form_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/files", json={"file": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await http.post("/v1/files", content=b"--y\r\nnonsense", headers=headers)
    assert answer.status_code == 400


def with_limits(bench: Bench, **jobs: Any) -> httpx.AsyncClient:
    raw = bench.settings.model_dump(mode="json")
    return serve(bench, Settings.model_validate(raw | {"jobs": raw["jobs"] | jobs}))


def serve(bench: Bench, settings: Settings) -> httpx.AsyncClient:
    app = make_app(JobService(bench.redis, bench.store, settings, [MODEL]))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE)


async def test_a_model_that_embeds_is_asked_for_embeddings_only(bench: Bench) -> None:
    changed = {"model": {"source": "m", "task": "embed"}, "engine": {"mode": "stock"}}
    async with serve(bench, Settings.model_validate(bench.settings.model_dump(mode="json") | changed)) as http:
        client = AsyncOpenAI(api_key="none", base_url=f"{BASE}/v1", http_client=http, max_retries=0)
        line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": MODEL, "input": "x"}}
        file_id = await upload(client, json.dumps(line).encode())
        with pytest.raises(openai.BadRequestError, match="Use one of: /v1/embeddings"):
            await create(client, file_id)
        batch_id = await create(client, file_id, endpoint="/v1/embeddings")
        await bench.keeper.run_once()
        assert (await client.batches.retrieve(batch_id)).status == "in_progress"


async def test_a_large_upload_is_refused(bench: Bench) -> None:
    async with with_limits(bench, max_file_bytes=100_000) as http:
        client = AsyncOpenAI(api_key="none", base_url=f"{BASE}/v1", http_client=http, max_retries=0)
        await upload(client, b"x" * 100_000)
        for size in (100_001, 300_000):
            with pytest.raises(openai.APIStatusError, match="100000 bytes") as refused:
                await upload(client, b"x" * size)
            assert (refused.value.status_code, refused.value.param) == (413, "file")

        async def endless() -> AsyncIterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
            for _ in range(30):
                yield b"x" * 10_000

        headers = {"content-type": "multipart/form-data; boundary=b"}
        answer = await http.post("/v1/files", content=endless(), headers=headers)
        assert answer.status_code == 413


async def test_too_many_batches(bench: Bench) -> None:
    async with with_limits(bench, max_active_batches=1) as http:
        client = AsyncOpenAI(api_key="none", base_url=f"{BASE}/v1", http_client=http, max_retries=0)
        file_id = await upload(client, b"{")
        batch_id = await create(client, file_id)
        with pytest.raises(openai.RateLimitError) as refused:
            await create(client, file_id)
        assert refused.value.code == "too_many_batches"
        assert int(refused.value.response.headers["retry-after"]) > 0
        await bench.end(batch_id)
        await create(client, file_id)


async def test_an_outage_of_redis(bench: Bench, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError("no server")

    monkeypatch.setattr("redis.asyncio.connection.UnixDomainSocketConnection._connect", refuse)
    monkeypatch.setattr("redis.asyncio.connection.Connection._connect", refuse)
    await bench.redis.connection_pool.disconnect()
    for call in (client.batches.list(), client.batches.retrieve("batch_0123456789"), upload(client, b"x")):
        with pytest.raises(openai.InternalServerError) as refused:
            await call
        assert refused.value.status_code == 503
        assert int(refused.value.response.headers["retry-after"]) > 0
        assert refused.value.type == "server_error"
    monkeypatch.undo()


async def test_an_outage_of_the_storage(bench: Bench, client: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(bench.store.storage, "create", fail)
    with pytest.raises(openai.InternalServerError) as refused:
        await upload(client, b"x")
    assert refused.value.status_code == 503
    assert (await client.files.list()).data == []
