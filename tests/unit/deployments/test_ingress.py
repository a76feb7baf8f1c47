from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from ray.serve.llm.ingress import OpenAiIngress
from starlette.types import Message

from conserve.config import load_settings
from conserve.jobs.errors import ApiError
from conserve.jobs.tenants import find_tenants
from conserve.jobs.validation import make_rules
from conserve.telemetry.metric import NO_RECORDER
from deployments.flex_routes import is_flex
from deployments.ingress import ConServeIngress
from deployments.ray_compat import ChatCompletionRequest, CompletionRequest

TENANTS = {"a": {"api_keys": ["sk-a"]}}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


class Ingress(ConServeIngress):
    """Without what Serve awaits at its end."""

    def __del__(self) -> None:
        pass


def make_ingress(monkeypatch: pytest.MonkeyPatch, **args: Any) -> ConServeIngress:
    """An ingress that Redis is away from; replicas answer."""

    async def answer(self: Any, body: Any, request: Request) -> Response:
        return JSONResponse({"model": body.model})

    for name in ("chat", "completions", "embeddings"):
        monkeypatch.setattr(OpenAiIngress, name, answer)
    ingress = Ingress.__new__(Ingress)
    ingress._settings = load_settings(args, {})
    ingress._tenants = find_tenants(ingress._settings)
    ingress._recorder = NO_RECORDER
    ingress._rules = make_rules(ingress._settings.requests)
    ingress._open = 0
    ingress._jobs = ingress._flex = ingress._queue = ingress._board = None
    return ingress


def make_request(key: str | None = None, body: dict[str, Any] | None = None, peer: str | None = "127.0.0.1") -> Request:
    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]

    async def receive() -> Message:
        return {"type": "http.request", "body": json.dumps(body or CHAT).encode()}

    client = (peer, 1) if peer else None
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers, "client": client}, receive)


def chat(**more: Any) -> Any:
    return ChatCompletionRequest.model_validate(CHAT | more)


@pytest.mark.parametrize("tier", [None, "auto", "default", "priority"])
async def test_online_requests_go_on_without_redis(monkeypatch: pytest.MonkeyPatch, tier: str | None) -> None:
    ingress = make_ingress(monkeypatch)
    body = chat(service_tier=tier) if tier else chat()
    assert not is_flex(body)
    assert (await ingress.chat(body, make_request())).status_code == 200


async def test_flex_requests_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ingress = make_ingress(monkeypatch)
    completion: Any = CompletionRequest.model_validate({"model": "m", "prompt": "hello", "service_tier": "flex"})
    for call, body in ((ingress.chat, chat(service_tier="flex")), (ingress.completions, completion)):
        with pytest.raises(ApiError) as refused:
            await call(body, make_request())
        assert (refused.value.status, refused.value.headers()) == (503, {"Retry-After": "5"})


async def test_online_requests_need_a_key_unless_the_settings_say_that_they_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ingress = make_ingress(monkeypatch, tenants=TENANTS, http={"keys_for_online": False})
    assert (await ingress.chat(chat(), make_request())).status_code == 200
    ingress = make_ingress(monkeypatch, tenants=TENANTS)
    for call in (ingress.chat, ingress.completions, ingress.embeddings):
        assert (await call(chat(), make_request("sk-a"))).status_code == 200
        for key in (None, "sk-b"):
            with pytest.raises(ApiError) as refused:
                await call(chat(), make_request(key))
            assert refused.value.status == 401


@pytest.mark.parametrize(
    ("peer", "status"), [("127.0.0.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("10.1.2.3", 401), (None, 401)]
)
async def test_without_keys_other_machines_are_not_let_in(
    monkeypatch: pytest.MonkeyPatch, peer: str | None, status: int
) -> None:
    ingress = make_ingress(monkeypatch)
    with nullcontext() if status == 200 else pytest.raises(ApiError) as refused:
        assert (await ingress.chat(chat(), make_request(peer=peer))).status_code == status
    assert refused is None or refused.value.status == status
    open_to_all = make_ingress(monkeypatch, http={"keys": "none"})
    assert (await open_to_all.chat(chat(), make_request(peer=peer))).status_code == 200


async def test_requests_that_reach_further_than_the_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ingress = make_ingress(monkeypatch)
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:8265/"}}
    body = CHAT | {"messages": [{"role": "user", "content": [part]}]}
    for call in (ingress.chat, ingress.completions, ingress.embeddings):
        with pytest.raises(ApiError) as refused:
            await call(chat(), make_request(body=body))
        error = refused.value
        assert (error.status, error.param, error.code) == (400, "messages.0.content.0.image_url", "not_allowed")


async def test_so_many_online_requests_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(self: Any, **_: Any) -> AsyncGenerator[str, None]:
        yield "data: a\n\n"
        yield "data: b\n\n"

    monkeypatch.setattr(OpenAiIngress, "_get_response", answer)
    ingress = make_ingress(monkeypatch, http={"max_open_requests": 2})

    def ask() -> AsyncGenerator[Any, None]:
        return ingress._get_response(body=chat(stream=True), call_method="chat")

    first, second = ask(), ask()
    assert [await anext(first), await anext(second)] == ["data: a\n\n"] * 2
    with pytest.raises(ApiError) as refused:
        await anext(ask())
    assert (refused.value.status, refused.value.headers()) == (429, {"Retry-After": "1"})
    assert "2 online requests" in refused.value.message
    await first.aclose()
    third = ask()
    assert [part async for part in third] == ["data: a\n\n", "data: b\n\n"]
    await second.aclose()
