"""Every method of the official client's batch and file resources; it refuses an answer that is not as it is typed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch, FileObject

from tests.integration.bench import LONG_MS, MODEL, Bench, make_input
from tests.integration.jobs.test_batch_routes import BASE, make_app


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[AsyncOpenAI]:
    transport = httpx2.ASGITransport(make_app(bench.service))
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as http:
        yield AsyncOpenAI(
            api_key="none", base_url=f"{BASE}/v1", http_client=http, max_retries=0, _strict_response_validation=True
        )


async def submit(client: AsyncOpenAI, content: bytes) -> Batch:
    file = await client.files.create(
        file=("in.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7_200}
    )
    assert file.expires_at == file.created_at + 7_200
    return await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"a": "b"},
        output_expires_after={"anchor": "created_at", "seconds": 3_600},
    )


async def test_a_batch_through_all_its_states(client: AsyncOpenAI, bench: Bench) -> None:
    batch = await submit(client, make_input(3))
    assert (batch.status, batch.metadata, batch.errors) == ("validating", {"a": "b"}, None)
    await bench.keeper.run_once()
    batch = await client.batches.retrieve(batch.id)
    assert (batch.status, batch.model) == ("in_progress", MODEL)
    assert batch.in_progress_at is not None
    claimed = await bench.queue.claim(batch.id, 3, LONG_MS, "a")
    await bench.queue.commit(batch.id, await bench.write(claimed[:1], "error"))
    await bench.finish(claimed[1:])
    batch = await client.batches.retrieve(batch.id)
    assert batch.status == "finalizing"
    assert batch.finalizing_at is not None
    await bench.end(batch.id)
    batch = await client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.completed_at is not None
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (21, 9, 30)
    for file_id, lines in ((batch.output_file_id, 2), (batch.error_file_id, 1)):
        assert file_id is not None
        file = await client.files.retrieve(file_id)
        assert file.expires_at == file.created_at + 3_600
        assert file.purpose == "batch_output"
        assert len((await client.files.content(file_id)).text.splitlines()) == lines


async def test_a_batch_that_fails_says_where(client: AsyncOpenAI, bench: Bench) -> None:
    batch = await submit(client, make_input(1) * 2)
    await bench.keeper.run_once()
    batch = await client.batches.retrieve(batch.id)
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.data is not None
    (error,) = batch.errors.data
    assert (error.code, error.param, error.line) == ("duplicate_custom_id", "custom_id", 2)
    assert error.message is not None


async def test_a_batch_that_is_cancelled(client: AsyncOpenAI, bench: Bench) -> None:
    batch = await submit(client, make_input(1))
    batch = await client.batches.cancel(batch.id)
    assert batch.status == "cancelling"
    assert batch.cancelling_at is not None
    await bench.end(batch.id)
    batch = await client.batches.cancel(batch.id)
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None


async def test_lists_and_their_pages(client: AsyncOpenAI) -> None:
    batches: list[Batch] = [await submit(client, b"x") for _ in range(3)]
    found = [batch async for batch in client.batches.list(limit=2)]
    assert sorted(batch.id for batch in found) == sorted(batch.id for batch in batches)
    files: list[FileObject] = [file async for file in client.files.list(purpose="batch", order="asc", limit=2)]
    assert sorted(file.id for file in files) == sorted(batch.input_file_id for batch in batches)
    assert [file.id async for file in client.files.list(after=files[-1].id, order="asc")] == []


async def test_a_file_is_deleted(client: AsyncOpenAI) -> None:
    file = await client.files.create(file=("in.jsonl", b"x"), purpose="batch")
    deleted = await client.files.delete(file.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)
    assert (await client.files.list()).data == []


async def test_what_openai_has_not(client: AsyncOpenAI, bench: Bench) -> None:
    batch = await submit(client, make_input(2))
    await bench.keeper.run_once()
    path = f"/batches/{batch.id}"
    for action, is_paused in (("pause", True), ("resume", False)):
        batch = await client.post(f"{path}/{action}", cast_to=Batch)
        assert ((batch.model_extra or {})["paused_at"] is not None) is is_paused
    batch = await client.post(path, cast_to=Batch, body={"priority": 5})
    assert (batch.model_extra or {})["priority"] == 5
    with pytest.raises(openai.BadRequestError, match="-100 and 100") as refused:
        await client.post(path, cast_to=Batch, body={"priority": 101})
    assert refused.value.param == "priority"
    await bench.finish(await bench.queue.claim(batch.id, 1, LONG_MS, "a"))
    results = await client.get(f"{path}/results", cast_to=str)
    assert results.count("id-1") == 2
    assert await client.get(f"{path}/results", cast_to=str, options={"params": {"after": 1}}) == ""
