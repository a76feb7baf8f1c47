"""What the fuzzer of HTTP calls a fault: each kind is found, and nothing else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI

from loadtests.fuzz import asgi
from loadtests.fuzz.asgi import Answer, Request, ask
from loadtests.fuzz.http_surface import find_faults

SECRET = b"/secret/folder"
ERROR = json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": None}}).encode()


@pytest.mark.parametrize(
    ("answer", "faults"),
    [
        (Answer(200, body=b"{}", is_whole=True), []),
        (Answer(404, body=ERROR, is_whole=True), []),
        (Answer(200, headers={"content-type": "text/event-stream"}), []),
        (Answer(200, body=b"{"), ["broken off"]),
        (Answer(500, body=ERROR, is_whole=True), ["server error"]),
        (Answer(503, body=ERROR, is_whole=True), ["server error"]),
        (Answer(400, body=b"no", is_whole=True), ["error without its form"]),
        (Answer(), ["no answer"]),
        (Answer(200, is_stuck=True), ["stuck"]),
        (Answer(200, is_whole=True, error=ValueError()), ["error past the handlers"]),
        (Answer(200, body=b"Traceback (most recent call last)", is_whole=True), ["internals"]),
        (Answer(200, body=b"see /secret/folder/x", is_whole=True), ["internals"]),
    ],
)
def test_an_answer_is_judged(answer: Answer, faults: list[str]) -> None:
    assert list(find_faults(answer, SECRET)) == faults


def build_app() -> FastAPI:
    app = FastAPI()

    @app.post("/echo")
    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @app.get("/stuck")
    async def stay() -> None:
        await asyncio.Event().wait()

    return app


async def test_an_answer_comes_in_whatever_pieces_its_request_went() -> None:
    headers = [(b"content-type", b"application/json")]
    answer = await ask(build_app(), Request("POST", "/echo?x=1", headers, b'{"a": 1}', piece_bytes=3))
    assert (answer.status, answer.body, answer.is_whole, answer.is_stuck) == (200, b'{"a":1}', True, False)


async def test_what_goes_on_without_its_client_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANSWER_LIMIT_S", "LEAVE_LIMIT_S"):
        monkeypatch.setattr(asgi, name, 0.05)
    assert (await ask(build_app(), Request("GET", "/stuck"))).is_stuck
