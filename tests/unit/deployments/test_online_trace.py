from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi import Request
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from conserve.config import SloSettings
from conserve.jobs.errors import ApiError
from conserve.telemetry.metric import NO_RECORDER
from conserve.telemetry.spans import NO_SPAN
from deployments import online_trace
from deployments.online_metrics import OnlineMetrics
from deployments.online_trace import begin_front, carry_on, follow_answer, trace_engine, trace_routing
from deployments.ray_compat import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    ErrorInfo,
    ErrorResponse,
    RawRequestInfo,
)
from tests.traces import CLIENT_SPAN, CLIENT_TRACE, TRACEPARENT, UNSAMPLED, tracing

SLO = SloSettings()
SECRETS = ("my prompt", "my answer", "sk-a")
BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "my prompt"}],
    "max_tokens": 7,
    "temperature": 0.5,
}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
PIECES = [
    'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"my answer"}}]}\n\n',
    'data: {"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n',
    'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n',
    "data: [DONE]\n\n",
]
WHOLE = ChatCompletionResponse(
    id="c1",
    model="m",
    choices=[{"index": 0, "message": {"role": "assistant", "content": "my answer"}, "finish_reason": "stop"}],
    usage=USAGE,
)


def make_request(scheme: str = "http", path: str = "/v1/chat/completions", **headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in {"authorization": "Bearer sk-a", **headers}.items()]
    scope = {"type": "http", "scheme": scheme, "method": "POST", "path": path, "query_string": b"", "headers": raw}
    return Request(scope)


def chat(**more: Any) -> Any:
    return ChatCompletionRequest.model_validate(BODY | more)


async def answer(*parts: Any, error: Exception | None = None) -> AsyncGenerator[Any, None]:
    for part in parts:
        yield part
    if error is not None:
        raise error


async def drain(responses: AsyncGenerator[Any, None]) -> list[Any]:
    return [response async for response in responses]


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    for secret in SECRETS:
        assert secret not in span.to_json()
    return dict(span.attributes or {})


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


async def test_off_everything_is_passed_on_as_it_is() -> None:
    request, info, responses = make_request(), RawRequestInfo({"a": "b"}), answer("a")
    span = begin_front("chat", chat(), request, SLO)
    assert span is NO_SPAN
    assert carry_on(request, span) is request
    assert follow_answer(span, chat(), 0.0, responses) is responses

    async def ask(given: RawRequestInfo | None) -> AsyncGenerator[Any, None]:
        assert given is info
        return responses

    assert await trace_engine("chat", chat(), info, ask) is responses
    trace_routing(info, "r1", 0.0)
    await responses.aclose()


async def test_a_request_that_is_not_sampled_is_carried_on_and_not_followed() -> None:
    responses = answer("a")
    with tracing() as tracer:
        request = make_request(traceparent=UNSAMPLED)
        span = begin_front("chat", chat(), request, SLO)
        carried = carry_on(request, span)
        assert follow_answer(span, chat(), 0.0, responses) is responses
        assert carried is not None
        assert carried.headers["traceparent"].endswith("-00")
        assert tracer.finish() == []
    await responses.aclose()


async def test_one_trace_from_the_client_to_the_engine() -> None:
    body = chat(stream=True, slo_class="nobody")
    with tracing() as tracer:
        request = make_request(traceparent=TRACEPARENT)
        front = begin_front("chat", body, request, SLO)
        carried = carry_on(request, front)
        assert carried is not None
        assert carried.headers["authorization"] == "Bearer sk-a"
        info = RawRequestInfo.from_starlette_request(carried)
        below: list[str] = []

        async def ask(given: RawRequestInfo | None) -> AsyncGenerator[Any, None]:
            assert given is not None
            below.append(given.headers["traceparent"])
            OnlineMetrics(NO_RECORDER, SLO).note_queued(0, 0.25)
            return answer(*PIECES)

        async def ask_replica() -> AsyncGenerator[Any, None]:
            trace_routing(info, "r1", 1_700_000_000.0)
            async for piece in await trace_engine("chat", body, info, ask):
                yield piece

        assert await drain(follow_answer(front, body, 0.0, ask_replica())) == PIECES
        routed, engine, served = tracer.finish()
    for span in (routed, engine, served):
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == CLIENT_TRACE
    assert parent_of(served) == CLIENT_SPAN
    assert parent_of(routed) == parent_of(engine) == id_of(served)
    assert below == [f"00-{CLIENT_TRACE}-{id_of(engine)}-01"]
    assert (served.name, served.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert (engine.name, engine.kind) == ("chat m", SpanKind.INTERNAL)
    assert (routed.name, routed.start_time) == ("route", 1_700_000_000_000_000_000)
    assert attributes_of(routed) == {"conserve.route.replica": "r1", "conserve.route.rule": "serve"}
    both = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.id": "c1",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "conserve.outcome": "answered",
    }
    first = "gen_ai.response.time_to_first_chunk"
    seen = attributes_of(engine)
    assert seen.pop(first) >= 0
    assert seen == both | {"conserve.engine.queue_time_s": 0.25}
    seen = attributes_of(served)
    assert seen.pop(first) >= 0
    way = {"http.request.method": "POST", "url.path": "/v1/chat/completions", "conserve.slo_class": "other"}
    assert seen == both | way
    assert [event.name for event in engine.events] == ["first chunk"]


async def test_a_whole_answer_has_an_end_and_no_first_piece() -> None:
    with tracing() as tracer:
        span = begin_front("chat", chat(n=1, max_completion_tokens=9), make_request(), SLO)
        assert await drain(follow_answer(span, chat(), 0.0, answer(WHOLE))) == [WHOLE]
        (seen,) = tracer.finish()
    attributes = attributes_of(seen)
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert (attributes["gen_ai.usage.input_tokens"], attributes["gen_ai.usage.output_tokens"]) == (3, 2)
    assert attributes["gen_ai.request.max_tokens"] == 9
    assert "gen_ai.response.time_to_first_chunk" not in attributes
    assert seen.parent is None


async def test_who_has_got_the_whole_answer_need_not_wait_for_its_end() -> None:
    with tracing() as tracer:
        span = begin_front("chat", chat(), make_request(), SLO)
        responses = follow_answer(span, chat(), 0.0, answer(WHOLE))
        await anext(responses)
        await responses.aclose()
        (seen,) = tracer.finish()
    assert attributes_of(seen)["conserve.outcome"] == "answered"


async def test_calls_of_grpc_are_named_as_they_are() -> None:
    path = "/conserve.v1.GenerationService/Generate"
    body = CompletionRequest(model="m" * 1_000, prompt="my prompt")
    with tracing() as tracer:
        begin_front("completions", body, make_request(online_trace.GRPC_SCHEME, path), SLO).end()
        (seen,) = tracer.finish()
    attributes = attributes_of(seen)
    assert (seen.name, attributes["rpc.system"]) == ("conserve.v1.GenerationService/Generate", "grpc")
    assert (attributes["rpc.service"], attributes["rpc.method"]) == ("conserve.v1.GenerationService", "Generate")
    assert attributes["gen_ai.operation.name"] == "text_completion"
    assert len(attributes["gen_ai.request.model"]) == 256, "what a client makes up is not kept at any length"


def make_error(code: int) -> ErrorResponse:
    return ErrorResponse(error=ErrorInfo(message="my prompt is wrong", type="BadRequestError", code=code))


@pytest.mark.parametrize(
    ("parts", "error", "outcome", "kind", "status"),
    [
        ([make_error(400)], None, "refused", "400", StatusCode.UNSET),
        ([make_error(500)], None, "failed", "500", StatusCode.ERROR),
        ([*PIECES[:1], 'data: {"error": {"message": "my prompt"}}\n\n'], None, "failed", "stream", StatusCode.ERROR),
        (PIECES[:1], RuntimeError("my prompt"), "failed", "RuntimeError", StatusCode.ERROR),
        ([], ApiError(404, "my prompt"), "refused", "404", StatusCode.UNSET),
        ([PIECES], None, "answered", None, StatusCode.UNSET),
        (["data: {broken\n\n"], None, "answered", None, StatusCode.UNSET),
        (['data: {"a": 1}\n\n'], None, "answered", None, StatusCode.UNSET),
    ],
)
async def test_how_an_answer_ends(
    parts: list[Any], error: Exception | None, outcome: str, kind: str | None, status: StatusCode
) -> None:
    with tracing() as tracer:
        span = begin_front("chat", chat(stream=True), make_request(), SLO)
        responses = follow_answer(span, chat(stream=True), 0.0, answer(*parts, error=error))
        if error is None:
            assert await drain(responses) == parts
        else:
            with pytest.raises(type(error)):
                await drain(responses)
        (seen,) = tracer.finish()
    attributes = attributes_of(seen)
    assert (attributes["conserve.outcome"], attributes.get("error.type")) == (outcome, kind)
    assert (seen.status.status_code, seen.status.description) == (status, None)


async def test_an_answer_that_nobody_waits_for_any_more_is_abandoned() -> None:
    with tracing() as tracer:
        span = begin_front("chat", chat(stream=True), make_request(), SLO)
        responses = follow_answer(span, chat(stream=True), 0.0, answer(*PIECES))
        await anext(responses)
        await responses.aclose()
        (seen,) = tracer.finish()
    assert attributes_of(seen)["conserve.outcome"] == "abandoned"
    assert seen.status.status_code == StatusCode.UNSET


async def test_a_replica_that_cannot_begin_has_a_span_too() -> None:
    async def ask(given: RawRequestInfo | None) -> AsyncGenerator[Any, None]:
        assert given is not None
        assert given.headers.keys() == {"traceparent"}
        raise RuntimeError("my prompt")

    with tracing() as tracer:
        with pytest.raises(RuntimeError):
            await trace_engine("embeddings", chat(), None, ask)
        (seen,) = tracer.finish()
    attributes = attributes_of(seen)
    assert (seen.name, attributes["error.type"]) == ("embeddings m", "RuntimeError")
    assert attributes["conserve.outcome"] == "failed"
