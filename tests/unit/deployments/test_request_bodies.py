"""Bodies that vLLM's validators trip over are refused, by the field where one is to blame."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from conserve.jobs.errors import ApiError
from deployments.errors import install_error_handlers
from deployments.ray_compat import ChatCompletionRequest
from deployments.request_bodies import CHAT_BODY, ChatBody, CompletionBody, EmbeddingBody

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def build_client() -> TestClient:
    app = FastAPI()
    install_error_handlers(app)

    async def chat(body: ChatBody) -> str:
        return type(body).__name__

    async def complete(body: CompletionBody) -> str:
        return type(body).__name__

    async def embed(body: EmbeddingBody) -> str:
        return type(body).__name__

    for path, route in (("/chat", chat), ("/completions", complete), ("/embeddings", embed)):
        # Annotations of functions within functions are not found by their names.
        kind = {"/chat": ChatBody, "/completions": CompletionBody, "/embeddings": EmbeddingBody}[path]
        route.__annotations__["body"] = kind
        app.post(path)(route)
    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("messages", [5, 1e308, True])
def test_messages_that_are_none(messages: Any) -> None:
    answer = build_client().post("/chat", json=CHAT | {"messages": messages})
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == ("messages", "invalid_type")


@pytest.mark.parametrize("path", ["/chat", "/completions", "/embeddings"])
@pytest.mark.parametrize("body", [None, 5, "text", [], {}, {"model": 5, "messages": {}, "prompt": {}, "input": {}}])
def test_whatever_is_sent_is_refused(path: str, body: Any) -> None:
    assert build_client().post(path, json=body).status_code == 400


def test_what_is_right_is_read_as_before() -> None:
    assert build_client().post("/chat", json=CHAT).json() == "ChatCompletionRequest"
    assert isinstance(CHAT_BODY.validate_python(CHAT), ChatCompletionRequest)
    with pytest.raises(ApiError, match="'messages'"):
        CHAT_BODY.validate_python(CHAT | {"messages": 5})
