"""Both clients against the real routes, with batches that are worked off beside them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import httpx
import openai
import pytest
from redis.asyncio import Redis

from conserve import AsyncClient, Client
from conserve.client import (
    AuthenticationError,
    ConflictError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    WaitTimeoutError,
)
from conserve.config import Settings
from tests.integration.bench import MODEL, TIMEOUT_S, make_input
from tests.integration.worked_routes import Worker, serve_with_models


@pytest.fixture
def client(base_url: str) -> Iterator[Client]:
    with Client(base_url) as client:
        yield client


@pytest.fixture
async def async_client(base_url: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"{base_url}/v1/") as client:
        yield client


def test_a_file_is_submitted_and_worked_off(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(make_input(5))
    job = client.submit(path, window="2h", metadata={"owner": "me"}, priority=7, output_kept_s=7_200)
    seen = []
    batch = job.wait(TIMEOUT_S, seen.append)
    assert (batch.status, batch.metadata, batch.priority) == ("completed", {"owner": "me"}, 7)
    assert (batch.completion_window, batch.request_counts.completed) == ("2h", 5)
    assert seen[-1] is batch
    assert b"".join(job.read_file()).count(b"\n") == 5
    assert list(job.read_file("error")) == []
    assert client.get(job.id).batch == batch
    assert [one.id for one in client.list()] == [job.id]


def test_results_come_as_they_are_done_and_in_order(client: Client) -> None:
    prompts = [f"say {number}" for number in range(20)]
    job = client.submit(prompts, body={"max_tokens": 3})
    assert sorted(result.text for result in job.as_completed()) == sorted(prompts)
    results = job.results(TIMEOUT_S)
    assert [result.text for result in results] == prompts
    assert [result.custom_id for result in results] == [f"request-{number}" for number in range(1, 21)]
    assert [result.text for result in job.in_order()] == prompts
    assert {result.usage.total_tokens for result in results} == {10}


def test_requests_may_be_prompts_bodies_and_lines(client: Client, worker: Worker) -> None:
    body = {"messages": [{"role": "user", "content": "a body"}], "temperature": 0.5}
    line = {"custom_id": "mine", "body": {"messages": [{"role": "user", "content": "a line"}], "model": MODEL}}
    results = list(client.map(["a prompt", body, line]))
    assert [result.text for result in results] == ["a prompt", "a body", "a line"]
    assert [result.custom_id for result in results] == ["request-1", "request-2", "mine"]


def test_map_of_nothing_is_nothing(client: Client) -> None:
    assert list(client.map([])) == []
    assert client.list() == []


def test_a_request_that_the_model_refuses_says_so(client: Client, worker: Worker) -> None:
    worker.engine.refusals.add("bad")
    good, bad = client.map(["good", "bad"])
    assert (good.ok, good.reason, good.text) == (True, None, "good")
    assert (bad.ok, bad.reason) == (False, "too long (HTTP 400)")
    with pytest.raises(Exception, match="request-2: too long") as caught:
        print(bad.text)
    assert caught.value.result is bad  # type: ignore[attr-defined]


def test_map_that_is_left_cancels_the_rest(client: Client, worker: Worker) -> None:
    worker.engine.answers_until_gate_shuts = 20
    results = client.map(f"say {number}" for number in range(40))
    next(results)
    results.close()  # type: ignore[attr-defined] # a generator
    (job,) = client.list()
    assert job.batch.status in ("cancelling", "cancelled")
    worker.go()


def test_what_is_refused_leaves_no_file(client: Client, base_url: str) -> None:
    with pytest.raises(InvalidRequestError, match="completion window") as caught:
        client.submit(["hello"], window="soon")
    assert caught.value.param == "completion_window"
    assert httpx.get(f"{base_url}/v1/files").json()["data"] == []


def test_a_file_that_is_wrong_fails_with_its_lines(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(make_input(1) * 2)
    job = client.submit(path)
    for ask in (job.results, lambda: list(job.as_completed())):
        with pytest.raises(JobFailedError, match="line 2: ") as caught:
            ask()
        assert caught.value.batch.errors is not None
        assert caught.value.batch.errors.data[0].code == "duplicate_custom_id"


def test_a_job_is_paused_resumed_prioritised_and_cancelled(client: Client, worker: Worker) -> None:
    worker.hold()
    job = client.submit(["a", "b"])
    assert job.pause().paused_at is not None
    assert job.resume().paused_at is None
    assert job.prioritise(-3).priority == -3
    with pytest.raises(WaitTimeoutError, match="has not ended within"):
        job.wait(0.2)
    assert job.cancel().status == "cancelling"
    worker.go()
    assert job.wait(TIMEOUT_S).status == "cancelled"
    assert len(job.results()) == 2
    with pytest.raises(NotFoundError):
        client.get("batch_0123456789abcdef")
    with pytest.raises(ConflictError):
        job.pause()


async def test_the_asynchronous_client_does_the_same(async_client: AsyncClient, worker: Worker) -> None:
    prompts = [f"say {number}" for number in range(10)]
    async with asyncio.timeout(TIMEOUT_S):
        jobs = await asyncio.gather(*(async_client.submit(prompts) for _ in range(3)))
        for job in jobs:
            assert [result.text for result in await job.results()] == prompts
        assert sorted([result.text async for result in jobs[0].as_completed()]) == sorted(prompts)
        assert [result.text async for result in async_client.map(prompts)] == prompts
        worker.engine.answers_until_gate_shuts = 20
        async with aclosing(async_client.map(prompts * 4)) as results:
            await anext(results)
        worker.go()
        assert (await async_client.list(1))[0].batch.status in ("cancelling", "cancelled")


async def test_the_blocking_client_works_inside_of_a_running_loop(client: Client) -> None:
    assert [result.text for result in client.map(["one", "two"])] == ["one", "two"]


def test_beside_openai_s_client(client: Client, base_url: str) -> None:
    theirs = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none")
    job = client.submit(["hello"])
    job.wait(TIMEOUT_S)
    batch = theirs.batches.retrieve(job.id)
    assert batch.output_file_id is not None
    (line,) = theirs.files.content(batch.output_file_id).text.splitlines()
    assert json.loads(line)["custom_id"] == "request-1"
    ours = Client(str(theirs.base_url), theirs.api_key)
    assert [result.text for result in ours.get(batch.id).results()] == ["hello"]
    ours.close()


def test_a_key_is_needed_where_there_are_tenants(settings: Settings, redis: Redis) -> None:
    keyed = Settings.model_validate(settings.model_dump() | {"tenants": {"research": {"api_keys": ["sk-1"]}}})
    with serve_with_models(keyed) as url, Client(url, "sk-2") as stranger, Client(url, "sk-1") as client:
        with pytest.raises(AuthenticationError, match="HTTP 401"):
            stranger.list()
        assert client.list() == []
