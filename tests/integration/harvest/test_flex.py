"""Flex requests from their HTTP request to a fake engine and back, with everything between them real."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from openai import AsyncOpenAI
from redis.asyncio import Redis

from conserve.config import DEFAULT_TENANT, Settings
from conserve.harvest.controller import HarvestController
from conserve.harvest.harvester import Harvester
from conserve.jobs import embedded
from conserve.jobs.connection import connect
from conserve.jobs.errors import ApiError
from conserve.jobs.files import FileStore
from conserve.jobs.flex import FlexService
from conserve.jobs.identity import MARK
from conserve.jobs.keys import Keys
from conserve.jobs.ledger import Holding
from deployments.errors import install_error_handlers
from deployments.flex_routes import answer_flex
from tests.integration.bench import LONG_MS, MODEL, TIMEOUT_S, URL, Bench
from tests.integration.harvest.conftest import running, wait_until
from tests.integration.harvest.fakes import FakeEngine
from tests.integration.jobs.served_routes import serve_app

Make = Callable[[FakeEngine, str], Harvester]
KEY = "sk-of-a"


def ask(content: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "service_tier": "flex"} | more


def change(settings: Settings, **sections: Any) -> Settings:
    return Settings.model_validate(settings.model_dump(mode="json") | sections)


def build_front(settings: Settings) -> FastAPI:
    """The route of chats as the front has it, for flex requests only."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        redis = await connect(settings)
        app.state.flex = FlexService(redis, FileStore(settings.files_url), settings, [MODEL])
        async with running(app.state.flex.run()):
            yield
        await redis.aclose()

    app = FastAPI(lifespan=lifespan)
    install_error_handlers(app)

    @app.post(URL)
    async def chat(request: Request) -> Response:
        return await answer_flex(app.state.flex, URL, request)

    return app


@asynccontextmanager
async def front(settings: Settings, key: str = "none") -> AsyncIterator[AsyncOpenAI]:
    with serve_app(build_front(settings)) as url:
        async with AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0, timeout=TIMEOUT_S) as client:
            yield client


@pytest.fixture
async def back(
    redis: Redis,
    store: FileStore,
    fast: Settings,
    controller: HarvestController,
    make_harvester: Make,
    engine: FakeEngine,
) -> AsyncIterator[None]:
    """All that works on flex requests but their front."""
    keeper = Bench(redis, store, fast).keeper
    async with running(controller.run()), running(keeper.run(0.02)), running(make_harvester(engine, "r1").run()):
        yield


async def find_leftovers(redis: Redis, settings: Settings) -> list[str]:
    """What is still kept of requests: keys of theirs, files, entries of indexes."""
    keys = Keys(settings.jobs.namespace)
    left = [key async for key in redis.scan_iter(match=f"{settings.jobs.namespace}:batch:*")]
    for index in (keys.active_batches, keys.flex, keys.due_files):
        left += await redis.zrange(index, 0, -1)
    left += list(await redis.hgetall(keys.held))
    # Folders may go meanwhile.
    left += [name for _, _, names in os.walk(settings.files_url) for name in names if name != MARK]
    return left


async def wait_until_nothing_is_left(redis: Redis, settings: Settings) -> None:
    async def is_clean() -> bool:
        return await find_leftovers(redis, settings) == []

    await wait_until(is_clean)


async def clean_up(redis: Redis, settings: Settings) -> None:
    """A keeper deletes all that is over."""
    async with running(Bench(redis, FileStore(settings.files_url), settings).keeper.run(0.02)):
        await wait_until_nothing_is_left(redis, settings)


@pytest.mark.usefixtures("back")
async def test_a_request_is_answered_and_leaves_nothing_behind(
    redis: Redis, fast: Settings, engine: FakeEngine
) -> None:
    async with front(fast) as client:
        answer = await client.chat.completions.create(**ask("one two"))
        assert answer.choices[0].message.content == "one two"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.service_tier == "flex"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 10
        answers = await asyncio.gather(*(client.chat.completions.create(**ask(f"word {n}")) for n in range(20)))
    assert [answer.choices[0].message.content for answer in answers] == [f"word {n}" for n in range(20)]
    assert engine.most_running <= fast.harvest.max_window
    await wait_until_nothing_is_left(redis, fast)


@pytest.mark.usefixtures("back")
async def test_a_streamed_answer_comes_in_chunks(redis: Redis, fast: Settings) -> None:
    async with front(fast) as client:
        options = {"include_usage": True}
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                **ask("one two three", stream=True, stream_options=options)
            )
        ]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
        assert {(chunk.service_tier, chunk.object, chunk.id) for chunk in chunks} == {
            ("flex", "chat.completion.chunk", "chatcmpl-1")
        }
        assert chunks[-1].usage is not None
        assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        chunks = [chunk async for chunk in await client.chat.completions.create(**ask("again", stream=True))]
        assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    await wait_until_nothing_is_left(redis, fast)


@pytest.mark.usefixtures("back")
async def test_each_word_comes_by_itself(redis: Redis, fast: Settings, engine: FakeEngine) -> None:
    """The engine says no word before the one before it has come."""
    gate = asyncio.Semaphore(1)
    engine.word_gate.wait = gate.acquire  # type: ignore[method-assign]
    service = FlexService(redis, FileStore(fast.files_url), fast, [MODEL])
    texts = []
    async with running(service.run()), asyncio.timeout(TIMEOUT_S):
        async for chunk in service.stream(DEFAULT_TENANT, URL, ask("one two three four")):
            texts.append(chunk["choices"][0]["delta"].get("content", ""))
            gate.release()
    assert [text for text in texts if text] == ["one", " two", " three", " four"]


@pytest.mark.usefixtures("back")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_whose_client_has_gone_is_let_go(
    redis: Redis, fast: Settings, engine: FakeEngine, stream: bool
) -> None:
    engine.gate.clear()
    async with front(fast) as client:

        async def at_work() -> bool:
            return engine.running == 1

        asking = asyncio.create_task(client.chat.completions.create(**ask("one two", stream=stream)))
        await wait_until(at_work)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await wait_until_nothing_is_left(redis, fast)
    assert engine.cancelled == ["one two"]


@pytest.mark.usefixtures("back")
async def test_a_client_that_leaves_in_the_middle_of_a_stream(redis: Redis, fast: Settings, engine: FakeEngine) -> None:
    class Gate:
        """Open for the role and the first word."""

        left = 2

        async def wait(self) -> bool:
            self.left -= 1
            if self.left < 0:
                await asyncio.Event().wait()
            return True

    engine.word_gate = Gate()  # type: ignore[assignment]
    async with front(fast) as client:
        stream = await client.chat.completions.create(**ask("one two", stream=True))
        async for chunk in stream:
            if chunk.choices[0].delta.content == "one":
                break
        await stream.close()
        await wait_until_nothing_is_left(redis, fast)
    assert engine.cancelled == ["one two"]


@pytest.mark.usefixtures("back")
@pytest.mark.parametrize("broken_at", [0, 1, 3])
async def test_another_attempt_goes_on_where_the_stream_broke_off(
    fast: Settings, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, broken_at: int
) -> None:
    from conserve.harvest import harvester

    monkeypatch.setattr(harvester, "FAULT_PAUSE_S", 0.01)
    engine.breaks = {"one two three": broken_at}
    async with front(fast) as client:
        stream = await client.chat.completions.create(**ask("one two three", stream=True))
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(texts) == "one two three"
    assert len(engine.asked) == 2


@pytest.mark.usefixtures("back")
async def test_a_result_makes_up_for_chunks_that_were_lost(
    redis: Redis, fast: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conserve.jobs import flex_stream

    async def lose(self: Any) -> None:
        self._gathered.clear()

    monkeypatch.setattr(flex_stream.ChunkWriter, "_write", lose)
    service = FlexService(redis, FileStore(fast.files_url), fast, [MODEL])
    async with running(service.run()):
        chunks = [chunk async for chunk in service.stream(DEFAULT_TENANT, URL, ask("one two"))]
    (chunk,) = chunks
    assert chunk["choices"][0]["delta"] == {"content": "one two", "role": "assistant"}
    assert (chunk["object"], chunk["choices"][0]["finish_reason"]) == ("chat.completion.chunk", "stop")


@pytest.mark.usefixtures("back")
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_model_refuses_is_refused(fast: Settings, engine: FakeEngine, stream: bool) -> None:
    engine.refusals = {"too long"}
    async with front(fast) as client:
        with pytest.raises(openai.BadRequestError, match="too long"):
            await client.chat.completions.create(**ask("too long", stream=stream))


@pytest.mark.usefixtures("back")
async def test_a_request_that_always_fails_says_why(
    fast: Settings, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conserve.harvest import harvester

    monkeypatch.setattr(harvester, "FAULT_PAUSE_S", 0.01)
    monkeypatch.setattr(harvester, "LONGEST_FAULT_PAUSE_S", 0.01)
    engine.faults = {"x"}
    async with front(fast) as client:
        with pytest.raises(openai.InternalServerError, match="the engine fell over") as failed:
            await client.chat.completions.create(**ask("x"))
    assert failed.value.code == "max_attempts_exceeded"


async def test_a_wrong_request_is_refused_before_it_is_queued(redis: Redis, fast: Settings) -> None:
    async with front(fast) as client:
        with pytest.raises(openai.NotFoundError, match="no model") as refused:
            await client.chat.completions.create(**ask("x") | {"model": "other"})
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
        part = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
        with pytest.raises(openai.BadRequestError, match="data:") as reached_out:
            await client.chat.completions.create(**ask("x") | {"messages": [{"role": "user", "content": [part]}]})
        assert (reached_out.value.code, reached_out.value.param) == ("not_allowed", "messages.0.content.0.image_url")
    assert await find_leftovers(redis, fast) == []


async def test_there_is_room_for_so_many_only(redis: Redis, fast: Settings) -> None:
    settings = change(fast, flex={"max_waiting": 1})
    service = FlexService(redis, FileStore(settings.files_url), settings, [MODEL])
    async with running(service.run()):
        waiting = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("x")))

        async def is_waiting() -> bool:
            return await redis.zcard(Keys(settings.jobs.namespace).flex) == 1

        await wait_until(is_waiting)
        async with front(settings) as client:
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(**ask("y"))
            assert refused.value.code == "resource_unavailable"
            assert int(refused.value.response.headers["retry-after"]) > 0
        waiting.cancel()
    await clean_up(redis, settings)


@pytest.mark.parametrize(
    "sections", [{"harvest": {"enabled": False}}, {"harvest": {"max_window": 0}}, {"flex": {"max_waiting": 0}}]
)
async def test_where_nothing_is_harvested_there_is_no_room(
    redis: Redis, fast: Settings, sections: dict[str, Any]
) -> None:
    settings = change(fast, **sections)
    service = FlexService(redis, FileStore(settings.files_url), settings, [MODEL])
    with pytest.raises(ApiError) as refused:
        await service.answer(DEFAULT_TENANT, URL, ask("x"))
    assert (refused.value.status, refused.value.code) == (429, "resource_unavailable")
    assert "Retry-After" in refused.value.headers()


async def test_the_wait_has_an_end(redis: Redis, fast: Settings) -> None:
    settings = change(fast, flex={"wait_s": 1})
    async with front(settings) as client:
        with pytest.raises(openai.APIStatusError, match="within 1 s") as late:
            await client.chat.completions.create(**ask("x"))
        assert (late.value.status_code, late.value.code) == (408, "flex_timeout")
    await clean_up(redis, settings)


async def test_a_request_of_a_front_that_is_gone_is_deleted_later(
    redis: Redis, fast: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conserve.jobs import flex_cleanup

    settings = change(fast, flex={"wait_s": 1})
    service = FlexService(redis, FileStore(settings.files_url), settings, [MODEL])
    monkeypatch.setattr(service._waiters, "leave", lambda batch_id: None)
    async with running(service.run()):
        with pytest.raises(ApiError):
            await service.answer(DEFAULT_TENANT, URL, ask("x"))
    bench = Bench(redis, FileStore(settings.files_url), settings)
    for _ in range(3):
        await bench.keeper.run_once()
    assert await find_leftovers(redis, fast) != []
    monkeypatch.setattr(flex_cleanup, "_GRACE_MS", 0)
    await clean_up(redis, settings)


async def test_flex_requests_are_in_no_list_and_count_for_their_tenant(redis: Redis, fast: Settings) -> None:
    settings = change(fast, tenants={"a": {"api_keys": [KEY], "max_queued_requests": 1}})
    service = FlexService(redis, FileStore(settings.files_url), settings, [MODEL])
    bench = Bench(redis, FileStore(settings.files_url), settings)
    ledger = bench.queue.ledger

    async def is_counted() -> bool:
        return (await ledger.used("a")).requests == 1

    async with running(service.run()):
        waiting = asyncio.create_task(service.answer("a", URL, ask("x")))
        await wait_until(is_counted)
        of_a = bench.service.for_tenant("a")
        assert (await of_a.list_batches()).data == []
        assert (await of_a.list_files()).data == []
        async with front(settings, KEY) as client:
            with pytest.raises(openai.RateLimitError, match="1 queued requests: you have 1") as refused:
                await client.chat.completions.create(**ask("y"))
            assert (refused.value.param, refused.value.code) == ("service_tier", "queued_requests_exceeded")
        waiting.cancel()
        await asyncio.wait([waiting])
    await clean_up(redis, settings)
    assert await ledger.used("a") == Holding()


async def test_flex_needs_a_key_where_there_are_any(fast: Settings) -> None:
    settings = change(fast, tenants={"a": {"api_keys": [KEY]}})
    async with front(settings, "wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="not valid"):
            await client.chat.completions.create(**ask("x"))
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"{client.base_url}chat/completions", json=ask("x"))
        assert answer.status_code == 401


async def test_without_redis_there_is_no_flex(tmp_path: Path) -> None:
    settings = Settings.model_validate({"state_dir": tmp_path, "jobs": {"lease_ms": LONG_MS}})
    redis = await connect(settings)
    try:
        service = FlexService(redis, FileStore(settings.files_url), settings, [MODEL])
        async with running(service.run()):
            waiting = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("x")))

            async def is_waiting() -> bool:
                return len(service._feed._subscriptions) == 1

            await wait_until(is_waiting)
            process = psutil.Process(int((tmp_path / "redis" / "redis.pid").read_text()))
            process.kill()
            process.wait(TIMEOUT_S)
            with pytest.raises(ApiError) as gone:
                await waiting
            assert (gone.value.status, gone.value.headers()) == (503, {"Retry-After": "5"})
            with pytest.raises(ApiError) as refused:
                await service.answer(DEFAULT_TENANT, URL, ask("x"))
            assert (refused.value.status, refused.value.headers()) == (503, {"Retry-After": "5"})
            await asyncio.to_thread(embedded.ensure_running, tmp_path)
            again = asyncio.create_task(service.answer(DEFAULT_TENANT, URL, ask("x")))
            await wait_until(is_waiting)
            again.cancel()
            await asyncio.wait([again])
    finally:
        await redis.aclose()
        assert embedded.stop(tmp_path)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_beyond_all_numbers_counts_as_the_most(
    back: None, fast: Settings, redis: Redis, name: str
) -> None:
    async with front(fast) as client:
        for most in (2**62, 2**63, 10**30):
            answer = await client.post(
                URL.removeprefix("/v1"), body=ask("hello", **{name: most}), cast_to=dict[str, Any]
            )
            assert answer["service_tier"] == "flex"
    await wait_until_nothing_is_left(redis, fast)
