"""What the front takes in of a request, before any route sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.types import Message

from conserve.config import HttpSettings
from deployments.errors import install_error_handlers
from deployments.http_limits import RequestLimits

SETTINGS = HttpSettings(max_body_bytes=2_000, max_header_bytes=1_500, body_timeout_s=0.2)


def make_app() -> FastAPI:
    app = FastAPI()
    app.add_middleware(RequestLimits, settings=SETTINGS)
    install_error_handlers(app)

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> int:
        return len(body)

    @app.post("/v1/files")
    async def upload(request: Request) -> int:
        return len(await request.body())

    return app


async def post(path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(make_app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
        return await client.post(path, **options)


def check_error(response: httpx.Response, status: int, *parts: str) -> None:
    assert response.status_code == status
    message = response.json()["error"]["message"]
    for part in parts:
        assert part in message
    assert response.headers["connection"] == "close"


async def test_a_request_within_its_limits_passes() -> None:
    assert (await post(json={"a": 1})).json() == 1
    assert (await post(json={"a": 1}, headers={"Content-Encoding": "identity"})).json() == 1


async def test_a_body_is_refused_by_the_length_that_it_says_or_has() -> None:
    check_error(await post(content=b"{" + b" " * 2_000 + b"}"), 413, "2000")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100

    check_error(await post(content=pieces(), headers={"Content-Type": "application/json"}), 413, "2000")


async def test_an_upload_has_limits_of_its_own() -> None:
    assert (await post("/v1/files", content=b"x" * 5_000)).json() == 5_000


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP, identity"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
async def test_compressed_bodies_are_refused(path: str, encoding: str) -> None:
    response = await post(path, content=b"x", headers={"Content-Encoding": encoding})
    check_error(response, 415, "compressed")
    assert response.json()["error"]["param"] == "Content-Encoding"


async def test_headers_and_addresses_have_a_length() -> None:
    check_error(await post(json={}, headers={"x-long": "y" * 1_500}), 431, "1500")
    check_error(await post("/v1/chat/completions?" + "y" * 1_500, json={}), 431, "1500")


async def test_a_length_that_is_no_number_is_refused() -> None:
    check_error(await post(content=b"{}", headers={"Content-Length": "many"}), 400, "Content-Length")


async def ask_slowly(*messages: Message) -> list[Message]:
    """What the application sends to a client that sends these, and then nothing."""
    scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
    scope |= {"scheme": "http", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions"}
    scope |= {"query_string": b"", "headers": [(b"content-type", b"application/json")], "client": None, "server": None}
    coming, sent = iter(messages), []

    async def receive() -> Message:
        if (message := next(coming, None)) is not None:
            return message
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(60):
        await make_app()(scope, receive, send)
    return sent


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    sent = await ask_slowly({"type": "http.request", "body": b"{", "more_body": True})
    assert sent[0]["status"] == 408
    assert b"0.2 s" in sent[1]["body"]


async def test_a_client_that_waits_for_a_long_answer_is_not_slow() -> None:
    app = make_app()

    @app.post("/long")
    async def answer(request: Request) -> int:
        await request.body()
        async with asyncio.timeout(60):
            gone = asyncio.create_task(request.receive())
            await asyncio.wait([gone], timeout=3 * SETTINGS.body_timeout_s)
            assert not gone.done() or gone.exception() is None
            gone.cancel()
        return 1

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://front") as client:
        assert (await client.post("/long", json={})).json() == 1
