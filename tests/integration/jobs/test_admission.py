"""Completion windows are promised or refused, on a capacity that the test makes up."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.batch import Batch
from conserve.jobs.capacity_store import CapacityStore, Watched
from conserve.jobs.errors import ApiError
from conserve.jobs.files import FileStore
from conserve.policy.capacity import INTERVAL_S, INTERVALS_PER_DAY
from deployments.api_errors import install_api_error_handlers
from deployments.batch_routes import build_batch_router
from tests.integration.bench import LONG_MS, MODEL, URL, Bench, make_input, make_line

RATE = 10.0
"""Tokens a second, of which 85 % are promised."""


def make_work(requests: int, max_tokens: int) -> bytes:
    body = make_line("")["body"] | {"max_tokens": max_tokens}
    return b"".join(json.dumps(make_line(f"id-{n}", body=body)).encode() + b"\n" for n in range(requests))


async def see(redis: Redis, settings: Settings, days: float = 3.0) -> None:
    """Puts up that the replicas could do so much at any time of the latest days."""
    store = CapacityStore(redis, settings.jobs.namespace)
    now = int(await store.read_now_ms() / 1000 // INTERVAL_S)
    seen = dict.fromkeys(range(now - round(days * INTERVALS_PER_DAY), now), (RATE * INTERVAL_S, INTERVAL_S))
    await store.write(MODEL, seen, [], Watched(at_ms=0))


def with_admission(bench: Bench, admission: str) -> Bench:
    raw = bench.settings.model_dump()
    settings = Settings.model_validate(raw | {"jobs": raw["jobs"] | {"admission": admission}})
    return Bench(bench.redis, bench.store, settings)


async def refuse(bench: Bench, content: bytes, window: str) -> ApiError:
    with pytest.raises(ApiError, match="too short") as refused:
        await bench.submit(content, window)
    return refused.value


async def validate(bench: Bench, batch_id: str) -> Batch:
    await bench.keeper.run_once()
    return await bench.get(batch_id)


async def test_a_file_that_is_too_long_for_the_window_is_refused_at_once(bench: Bench, redis: Redis) -> None:
    await see(redis, bench.settings)
    content = b"x" * 200_000
    error = await refuse(bench, content, "10m")
    assert (error.status, error.code, error.param) == (400, "window_too_short", "completion_window")
    # 25,000 tokens at 8.5 a second, with some spare time.
    assert error.details == {"earliest_completion_window": "53m"}
    assert "10m" in error.message
    assert "'53m'" in error.message
    assert await bench.queue.active_ids() == {}
    (file,) = (await bench.service.list_files()).data
    assert (await bench.service.delete_file(file.id)).deleted, "the refused batch does not hold its file"
    batch = await bench.get(await bench.submit(content, "53m"))
    assert (batch.admission, batch.earliest_completion_window) == ("fits", None)


async def test_work_that_the_length_does_not_show_is_refused_before_anything_runs(bench: Bench, redis: Redis) -> None:
    await see(redis, bench.settings)
    batch_id = await bench.submit(make_work(100, 1_000), "30m")
    assert (await bench.get(batch_id)).admission == "fits"
    batch = await validate(bench, batch_id)
    assert batch.status == "failed"
    assert batch.errors is not None
    (error,) = batch.errors.data
    assert (error.code, error.param, error.line) == ("window_too_short", "completion_window", None)
    assert error.earliest_completion_window == "4h"
    assert await bench.queue.claim(batch_id, 9, LONG_MS, "a") == []
    again = await validate(bench, await bench.submit(make_work(100, 1_000), "4h"))
    assert (again.status, again.admission) == ("in_progress", "fits")


async def test_where_no_window_is_long_enough_none_is_named(bench: Bench, redis: Redis) -> None:
    await see(redis, bench.settings)
    batch = await validate(bench, await bench.submit(make_work(30, 1_000_000), "30d"))
    assert batch.errors is not None
    (error,) = batch.errors.data
    assert (error.code, error.earliest_completion_window) == ("window_too_short", None)
    assert "No window up to 30d" in error.message


async def test_what_was_promised_to_others_counts_until_it_is_done_or_cancelled(bench: Bench, redis: Redis) -> None:
    await see(redis, bench.settings)
    first = await bench.submit(make_work(25, 1_000), "1h")
    assert (await validate(bench, first)).status == "in_progress"
    second = await validate(bench, await bench.submit(make_work(25, 1_000), "1h"))
    assert second.errors is not None
    assert second.errors.data[0].code == "window_too_short"
    await bench.finish(await bench.queue.claim(first, 24, LONG_MS, "a"))
    third = await bench.submit(make_work(25, 1_000), "1h")
    assert (await validate(bench, third)).status == "in_progress"
    await bench.service.cancel_batch(third)
    fourth = await bench.submit(make_work(25, 1_000), "1h")
    assert (await validate(bench, fourth)).status == "in_progress"


async def test_a_warning_is_kept_with_the_batch(bench: Bench, redis: Redis) -> None:
    await see(redis, bench.settings)
    warned = with_admission(bench, "warn")
    batch_id = await warned.submit(b"x" * 200_000, "10m")
    batch = await warned.get(batch_id)
    assert (batch.admission, batch.earliest_completion_window) == ("window_too_short", "53m")
    batch = await validate(warned, await warned.submit(make_work(100, 1_000), "30m"))
    assert (batch.status, batch.admission) == ("in_progress", "window_too_short")
    assert batch.earliest_completion_window is not None


@pytest.mark.parametrize(("floor", "backed_by"), [(0.05, "floor"), (0.0, "forecast")])
async def test_a_batch_says_what_its_window_is_promised_on(
    bench: Bench, redis: Redis, floor: float, backed_by: str
) -> None:
    await see(redis, bench.settings)
    raw = bench.settings.model_dump()
    settings = Settings.model_validate(raw | {"harvest": raw["harvest"] | {"deadline_floor": floor}})
    granted = Bench(redis, bench.store, settings)
    batch_id = await granted.submit(make_work(10, 100), "24h")
    assert (await granted.get(batch_id)).deadline_backed_by == backed_by
    assert (await validate(granted, batch_id)).deadline_backed_by == backed_by
    warned = with_admission(bench, "warn")
    batch = await validate(warned, await warned.submit(make_work(100, 1_000), "30m"))
    assert (batch.admission, batch.deadline_backed_by) == ("window_too_short", None)


async def test_where_it_is_off_nobody_looks(bench: Bench, redis: Redis) -> None:
    await see(redis, bench.settings)
    unwatched = with_admission(bench, "off")
    batch = await validate(unwatched, await unwatched.submit(make_work(100, 1_000_000), "1m"))
    assert (batch.status, batch.admission) == ("in_progress", None)


@pytest.mark.parametrize("days", [0.0, 0.01])
async def test_with_less_than_half_an_hour_of_history_nothing_is_refused(
    bench: Bench, redis: Redis, days: float
) -> None:
    await see(redis, bench.settings, days)
    batch = await validate(bench, await bench.submit(make_work(100, 1_000_000), "1m"))
    assert (batch.status, batch.admission) == ("in_progress", "unknown")


async def test_answers_are_taken_for_as_long_as_those_of_earlier_batches(bench: Bench, redis: Redis) -> None:
    batch_id = await bench.start(30)
    await bench.finish(await bench.queue.claim(batch_id, 30, LONG_MS, "a"))
    await bench.end(batch_id)
    usage = await CapacityStore(redis, bench.settings.jobs.namespace).read_usage(MODEL, URL)
    assert (usage.requests, usage.prompt_tokens, usage.output_tokens) == (30, 210, 90)
    assert usage.file_bytes == pytest.approx(len(make_input(30)), abs=1)
    await see(redis, bench.settings)
    # By their limits these would be 100,000 tokens, but 10 each by those that were seen.
    batch = await validate(bench, await bench.submit(make_work(100, 1_000), "5m"))
    assert (batch.status, batch.admission) == ("in_progress", "fits")
    (summary,) = await bench.queue.active_summaries()
    assert 300 < summary.work_tokens < 1_500


async def test_a_window_that_ended_before_the_validation_is_no_matter_of_admission(bench: Bench, redis: Redis) -> None:
    await see(redis, bench.settings)
    batch_id = await bench.submit(make_input(2))
    key = f"{bench.settings.jobs.namespace}:batch:{{{batch_id}}}"
    await redis.hset(key, "expires_at_ms", "1")  # type: ignore[misc]
    batch, _, errors = await bench.end(batch_id)
    assert (batch.status, sorted(errors)) == ("expired", ["id-1", "id-2"])


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[AsyncOpenAI]:
    app = FastAPI()
    app.include_router(build_batch_router(lambda: bench.service))
    install_api_error_handlers(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        yield AsyncOpenAI(api_key="none", base_url="http://test/v1", http_client=http, max_retries=0)


async def test_over_http_the_error_carries_the_earliest_window(client: AsyncOpenAI, bench: Bench, redis: Redis) -> None:
    await see(redis, bench.settings)
    file = await client.files.create(file=("in.jsonl", b"x" * 200_000), purpose="batch")
    arguments: dict[str, Any] = {"input_file_id": file.id, "endpoint": URL}
    with pytest.raises(openai.BadRequestError) as refused:
        await client.batches.create(**arguments, completion_window="10m")
    error = refused.value
    assert (error.code, error.param) == ("window_too_short", "completion_window")
    assert isinstance(error.body, dict)
    assert error.body["earliest_completion_window"] == "53m"
    batch = await client.batches.create(**arguments, completion_window=error.body["earliest_completion_window"])
    assert (batch.model_extra or {})["admission"] == "fits"


async def test_over_http_a_batch_shows_when_it_will_end(client: AsyncOpenAI, bench: Bench) -> None:
    async def read(batch_id: str) -> Any:
        return ((await client.batches.retrieve(batch_id)).model_extra or {})["predicted_end_at"]

    batch_id = await bench.submit(make_input(2))
    await bench.queue.predict({batch_id: 7_000})
    assert await read(batch_id) is None, "it is not in progress"
    await bench.keeper.run_once()
    assert await read(batch_id) is None, "nothing is known"
    await bench.queue.predict({batch_id: 7_999, "batch_0123456789": 1})
    assert await read(batch_id) == 7
    assert await bench.queue.get("batch_0123456789") is None
    await bench.queue.predict({batch_id: None})
    assert await read(batch_id) is None
    await bench.queue.predict({batch_id: 8_000})
    await bench.service.pause_batch(batch_id)
    assert await read(batch_id) is None, "a paused batch does not end"
    await bench.service.resume_batch(batch_id)
    await bench.finish(await bench.queue.claim(batch_id, 2, LONG_MS, "a"))
    await bench.end(batch_id)
    assert await read(batch_id) is None


async def test_a_store_reads_back_what_it_wrote(redis: Redis, settings: Settings, store: FileStore) -> None:
    kept = CapacityStore(redis, settings.jobs.namespace)
    watched = Watched(at_ms=5, tokens={"r1": 7, "r2": 0})
    await kept.write("m", {1: (10.0, 2.0), 2: (3.5, 0.5)}, [], watched)
    assert (await kept.read_history("m")).intervals == {1: (10.0, 2.0), 2: (3.5, 0.5)}
    assert await kept.read_watched("m") == watched
    await kept.write("m", {2: (4.0, 1.0)}, [1], Watched(at_ms=6, tokens={"r2": 9}))
    assert (await kept.read_history("m")).intervals == {2: (4.0, 1.0)}
    assert await kept.read_watched("m") == Watched(at_ms=6, tokens={"r2": 9})
    assert (await kept.read_history("other")).intervals == {}
    assert await kept.read_watched("other") == Watched()
