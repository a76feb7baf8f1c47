"""Which answers to flex requests the client of the kill runs asks for again."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from loadtests.killing.client import NotNowError, PatientClient, WrongAnswerError


def make_client(answer: httpx.Response) -> PatientClient:
    client = PatientClient("http://front", "sk")
    client._http = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: answer), base_url="http://front")
    return client


def event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


def chunk(text: str) -> str:
    return event({"choices": [{"index": 0, "delta": {"content": text}}]})


def broken(code: str) -> str:
    return event({"error": {"message": "it broke off", "code": code}})


@pytest.mark.parametrize(
    ("status", "content", "expected"),
    [
        (429, '{"error": {}}', NotNowError),
        (503, '{"error": {}}', NotNowError),
        (500, "Internal Server Error", NotNowError),
        (500, '{"error": {"code": "max_attempts_exceeded"}}', WrongAnswerError),
        (408, '{"error": {"code": "flex_timeout"}}', WrongAnswerError),
        (200, chunk("one"), NotNowError),
        (200, chunk("one") + broken("service_unavailable"), NotNowError),
        (200, chunk("one") + broken("stream_broken"), WrongAnswerError),
        (200, chunk("one") + ": waiting\n\n" + chunk(" two") + "data: [DONE]\n\n", "one two"),
    ],
)
async def test_what_passes_is_asked_for_again(status: int, content: str, expected: Any) -> None:
    client = make_client(httpx.Response(status, text=content))
    if isinstance(expected, str):
        assert await client.ask_flex({"stream": True}, 5.0) == expected
    else:
        with pytest.raises(expected):
            await client.ask_flex({"stream": True}, 5.0)
    await client.close()
