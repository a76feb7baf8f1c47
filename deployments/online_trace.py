"""Spans of an online request: at the front, of its way to a replica, and at the replica.

Attributes are those of OpenTelemetry's semantic conventions for generative AI, where these have one; our own begin with
`conserve.`. Prompts, answers and keys are in none.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, Final

from fastapi import Request

from conserve.config import SloSettings
from conserve.telemetry.spans import ERROR_TYPE, NO_SPAN, REQUEST_SPAN, Span, SpanKind, Value, find_tracer
from deployments.errors import is_error, is_refusal, to_api_error
from deployments.online_metrics import class_of
from deployments.ray_compat import RawRequestInfo
from deployments.routing_report import MARK_HEADER, Mark

OUTCOME: Final = "conserve.outcome"
GRPC_SCHEME: Final = "grpc"
"""Of a request that has come as a call of gRPC."""

_OPERATIONS: Final = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_LAST_PARTS: Final = 3
"""Of a streamed answer: why it has ended, its usage, and that this was all."""
_LONGEST_VALUE: Final = 256
_SERVER_ERRORS: Final = 500
"""From this status of HTTP on."""


def begin_front(method: str, body: Any, request: Request | None, slo: SloSettings) -> Span:
    """Begins the span of a request at the front; its trace is that of the client, if there is one.

    Args:
        method: Of the replica that is called: `chat`, `completions` or `embeddings`.
        body: What is asked for.
        request: How it came.
        slo: The classes of requests.
    """
    tracer = find_tracer()
    if not tracer.is_on or request is None:
        return NO_SPAN
    path = str(request.scope["path"])
    way: dict[str, Value]
    if request.scope.get("scheme") == GRPC_SCHEME:
        name = path.removeprefix("/")
        service, _, rpc = name.partition("/")
        way = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": rpc}
    else:
        name, way = f"{request.method} {path}", {"http.request.method": request.method, "url.path": path}
    attributes = {**way, **_describe(method, body), "conserve.slo_class": class_of(body, slo)}
    return tracer.begin(name, SpanKind.SERVER, attributes, parent=request.headers)


def carry_on(request: Request | None, span: Span) -> Request | None:
    """The request as it goes to a replica: as a part of the span, if it is taken."""
    if request is None or span is NO_SPAN:
        return request
    headers = dict(request.headers)
    span.carry(headers)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return Request({**request.scope, "headers": raw}, request.receive)


def trace_routing(info: RawRequestInfo, replica: str, began_s: float) -> None:
    """A request was given to a replica.

    Args:
        info: The request's headers, with the router's mark if our rule has decided.
        replica: Its id.
        began_s: Since when one was looked for, in Unix seconds.
    """
    tracer = find_tracer()
    if not tracer.is_on:
        return
    mark = Mark.read(info.headers.get(MARK_HEADER))
    attributes: dict[str, Value | None] = {
        "conserve.route.replica": replica,
        "conserve.route.rule": "serve" if mark is None else "slo",
        "conserve.route.prompt_tokens": None if mark is None else mark.prompt_tokens,
    }
    tracer.begin("route", SpanKind.INTERNAL, attributes, parent=info.headers, began_s=began_s).end()


async def trace_engine(
    method: str,
    body: Any,
    info: RawRequestInfo | None,
    answer: Callable[[RawRequestInfo | None], Awaitable[AsyncGenerator[Any, None]]],
) -> AsyncGenerator[Any, None]:
    """Answers a request at a replica, in a span.

    Args:
        method: As in `begin_front`.
        body: What is asked for.
        info: The request's headers.
        answer: Answers it; its argument are the headers, in which the span is the parent of what is traced below.
    """
    tracer = find_tracer()
    if not tracer.is_on:
        return await answer(info)
    began_s = time.monotonic()
    headers = dict(info.headers) if info is not None else {}
    described = _describe(method, body)
    name = f"{described['gen_ai.operation.name']} {described['gen_ai.request.model']}"
    span = tracer.begin(name, SpanKind.INTERNAL, described, parent=headers)
    span.carry(headers)
    REQUEST_SPAN.set(span)  # The task that this runs in has no other request.
    try:
        info = RawRequestInfo(headers) if info is None else dataclasses.replace(info, headers=headers)
        responses = await answer(info)
    except BaseException as error:
        span.set(OUTCOME, _note_exception(span, error) if isinstance(error, Exception) else "abandoned")
        span.end()
        raise
    return follow_answer(span, body, began_s, responses)


def follow_answer(
    span: Span, body: Any, began_s: float, responses: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    """Passes an answer on; the span ends with it.

    Args:
        span: Has begun with the request.
        body: What was asked for.
        began_s: When the request came, in seconds of the monotonic clock.
        responses: The answer: whole, or pieces of it.
    """
    if not span.is_recording:
        return responses
    return _follow(span, bool(getattr(body, "stream", False)), began_s, responses)


async def _follow(
    span: Span, is_streamed: bool, began_s: float, responses: AsyncGenerator[Any, None]
) -> AsyncGenerator[Any, None]:
    outcome = "abandoned"
    has_begun = False
    last: deque[Any] = deque(maxlen=_LAST_PARTS)
    try:
        async with aclosing(responses):
            async for response in responses:
                # Pieces may come together, in a list.
                for part in response if isinstance(response, list) else [response]:
                    if is_error(part):
                        outcome = _note_error(span, part)
                    last.append(part)
                if outcome == "abandoned" and not is_streamed:
                    outcome = "answered"  # Who has got the whole answer asks for no more.
                elif outcome == "abandoned" and not has_begun:
                    has_begun = True
                    span.set("gen_ai.response.time_to_first_chunk", time.monotonic() - began_s)
                    span.note("first chunk")
                yield response
        if outcome == "abandoned":
            outcome = "answered"
    except Exception as error:
        outcome = _note_exception(span, error)
        raise
    finally:
        for name, value in _read_end(last):
            span.set(name, value)
        span.set(OUTCOME, outcome)
        span.end()


def _note_error(span: Span, response: Any) -> str:
    code = "stream" if isinstance(response, str) else str(response.error.code)
    if is_refusal(response):
        span.set(ERROR_TYPE, code)
        return "refused"
    span.fail(code)
    return "failed"


def _note_exception(span: Span, error: Exception) -> str:
    status = to_api_error(error).status
    if status < _SERVER_ERRORS:
        span.set(ERROR_TYPE, str(status))
        return "refused"
    span.fail(type(error).__name__)
    return "failed"


def _describe(method: str, body: Any) -> dict[str, Value | None]:
    fields = vars(body)  # Asked for as attributes, deprecated ones warn.
    limit = fields.get("max_completion_tokens")
    return {
        "gen_ai.operation.name": _OPERATIONS.get(method, method),
        "gen_ai.request.model": str(fields.get("model") or "")[:_LONGEST_VALUE],
        "gen_ai.request.stream": fields.get("stream") or None,
        "gen_ai.request.max_tokens": fields.get("max_tokens") if limit is None else limit,
        "gen_ai.request.temperature": fields.get("temperature"),
        "gen_ai.request.top_p": fields.get("top_p"),
        "gen_ai.request.choice.count": None if fields.get("n") == 1 else fields.get("n"),
    }


def _read_end(last: deque[Any]) -> Iterator[tuple[str, Value]]:
    """What the last parts of an answer say of it as a whole."""
    reasons: list[str] = []
    for part in last:
        content = _read_part(part)
        if answer_id := content.get("id"):
            yield "gen_ai.response.id", str(answer_id)
        for choice in content.get("choices") or ():
            if reason := choice.get("finish_reason"):
                reasons.append(str(reason))
        usage = content.get("usage") or {}
        for name, field in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            if (tokens := usage.get(field)) is not None:
                yield f"gen_ai.usage.{name}_tokens", int(tokens)
    if reasons:
        yield "gen_ai.response.finish_reasons", reasons


def _read_part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        if not part.startswith("data: {"):
            return {}
        try:
            content: dict[str, Any] = json.loads(part.removeprefix("data: "))
        except ValueError:
            return {}
        return content
    # Whole answers of embeddings are long, and have neither reasons nor pieces.
    return {
        "id": getattr(part, "id", None),
        "choices": [{"finish_reason": one.finish_reason} for one in getattr(part, "choices", None) or ()],
        "usage": dict(getattr(part, "usage", None) or {}),
    }
