from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from conserve.jobs.answers import window_too_short
from conserve.jobs.batch import Batch, BatchError, BatchErrors, BatchStatus
from conserve.jobs.errors import ApiError
from conserve.jobs.results import format_error, format_output
from deployments.errors import to_api_error
from deployments.grpc_front.batches import read_results, to_message
from deployments.grpc_front.events import read_events
from deployments.grpc_front.generation import read_answer, read_piece, to_body
from deployments.grpc_front.methods import GrpcMethods
from deployments.grpc_front.status import LONGEST_MESSAGE_BYTES, to_status
from deployments.protos import conserve_pb2 as pb
from deployments.protos.conserve_pb2_grpc import GenerationServiceStub
from deployments.ray_compat import BackPressureError, ChatCompletionRequest, CompletionRequest, OpenAIHTTPException
from deployments.replica_loss import LOST_CODE, ReplicaLost, lost_event
from tests.grpc_server import read_details, serve_methods

TIMEOUT_S = 60.0
CHAT = pb.Chat(messages=[pb.ChatMessage(role="user", content="hello")])


# Statuses.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ApiError(400, "m", param="p"), grpc.StatusCode.INVALID_ARGUMENT),
        (OpenAIHTTPException(400, "m (parameter=max_tokens, value=9)"), grpc.StatusCode.INVALID_ARGUMENT),
        (ApiError(401, "m"), grpc.StatusCode.UNAUTHENTICATED),
        (HTTPException(403, "m"), grpc.StatusCode.PERMISSION_DENIED),
        (ApiError(404, "m"), grpc.StatusCode.NOT_FOUND),
        (ApiError(408, "m"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (ApiError(409, "m"), grpc.StatusCode.FAILED_PRECONDITION),
        (ApiError(410, "m"), grpc.StatusCode.NOT_FOUND),
        (ApiError(413, "m", param="file"), grpc.StatusCode.INVALID_ARGUMENT),
        (BackPressureError(num_queued_requests=9, max_queued_requests=8), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (ApiError(502, "m"), grpc.StatusCode.UNAVAILABLE),
        (ReplicaLost("m"), grpc.StatusCode.UNAVAILABLE),
        (RuntimeError("secret"), grpc.StatusCode.INTERNAL),
    ],
)
def test_failures_have_the_code_that_grpc_has_for_them(error: Exception, code: grpc.StatusCode) -> None:
    status = to_status(to_api_error(error))
    assert status.code == code.value[0]
    assert "secret" not in status.message


def unpack(error: ApiError, kind: type[Message]) -> Any:
    (found,) = [detail for detail in to_status(error).details if detail.Is(kind.DESCRIPTOR)]
    message = kind()
    found.Unpack(message)
    return message


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("messages", "chat.messages"),
        ("messages.0.content", "chat.messages.0.content"),
        ("max_tokens", "sampling.max_tokens"),
        ("top_logprobs", "sampling.logprobs"),
        ("response_format", "sampling.json_schema"),
        ("slo_class", "slo_class"),
        ("completion_window", "completion_window"),
        ("file", "requests"),
    ],
)
def test_the_field_is_that_of_the_message(param: str, field: str) -> None:
    (violation,) = unpack(ApiError(400, "m", param=param), error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == (field, "m")


def test_what_programs_read_is_there() -> None:
    overloaded = to_api_error(BackPressureError(num_queued_requests=9, max_queued_requests=8))
    assert unpack(overloaded, error_details_pb2.RetryInfo).retry_delay.seconds >= 1
    info = unpack(window_too_short("m", "36h"), error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("WINDOW_TOO_SHORT", "conserve")
    assert dict(info.metadata) == {"earliest_completion_window": "36h"}


def test_long_messages_fit_in_what_clients_take() -> None:
    status = to_status(ApiError(400, "ä" * 5_000, param="messages"))
    assert len(status.message.encode()) <= LONGEST_MESSAGE_BYTES
    assert len(status.SerializeToString()) < 3 * LONGEST_MESSAGE_BYTES


# Requests and answers.


def test_a_chat_is_the_request_that_the_http_api_takes() -> None:
    sampling = pb.Sampling(
        max_tokens=0,
        temperature=0.7,
        stop=["a", "b"],
        logit_bias={5: -1.5},
        logprobs=2,
        json_schema='{"type": "object"}',
        ignore_eos=False,
    )
    request = pb.GenerateStreamRequest(
        model="m", chat=CHAT, sampling=sampling, slo_class="interactive", service_tier=pb.SERVICE_TIER_FLEX
    )
    endpoint, body = to_body(request, None, stream=True)
    assert endpoint == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 0,
        "temperature": 0.7,
        "stop": ["a", "b"],
        "logit_bias": {"5": -1.5},
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        "ignore_eos": False,
        "slo_class": "interactive",
        "service_tier": "flex",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    ChatCompletionRequest.model_validate(body | {"max_tokens": 1})


def test_a_prompt_goes_to_completions_and_only_what_is_set_is_sent() -> None:
    request = pb.GenerateRequest(prompt=" ", sampling=pb.Sampling(logprobs=0))
    endpoint, body = to_body(request, "the only one")
    assert (endpoint, body) == ("/v1/completions", {"model": "the only one", "prompt": " ", "logprobs": 0})
    CompletionRequest.model_validate(body)


@pytest.mark.parametrize("schema", ["{", "[]", "[" * 100_000])
def test_a_schema_that_is_none_is_refused(schema: str) -> None:
    with pytest.raises(ApiError, match="json_schema"):
        to_body(pb.GenerateRequest(chat=CHAT, sampling=pb.Sampling(json_schema=schema)), None)


TOKEN = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.5}]}
OF_COMPLETION = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.5}]}


@pytest.mark.parametrize(
    "choice",
    [
        {"index": 1, "finish_reason": "stop", "message": {"content": "a"}, "logprobs": {"content": [TOKEN]}},
        {"index": 1, "finish_reason": "stop", "text": "a", "logprobs": OF_COMPLETION},
    ],
)
def test_answers_of_both_kinds_are_read(choice: dict[str, Any]) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    message = read_answer({"id": "i", "model": "m", "choices": [choice], "usage": usage})
    assert message == pb.GenerateResponse(
        id="i",
        model="m",
        choices=[
            pb.Choice(
                index=1,
                text="a",
                finish_reason="stop",
                logprobs=[
                    pb.TokenLogprob(token="a", logprob=-0.5, alternatives=[pb.TokenLogprob(token="b", logprob=-1.5)])
                ],
            )
        ],
        usage=pb.Usage(prompt_tokens=3, completion_tokens=1),
    )


def test_pieces_with_nothing_in_them_are_not_sent() -> None:
    chunk = {"id": "i", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    assert read_piece(chunk) is None
    last = read_piece({"id": "i", "model": "m", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
    assert last is not None
    assert last.usage.completion_tokens == 1


# Batches.


@pytest.mark.parametrize("status", BatchStatus)
def test_every_status_of_a_batch_has_its_message(status: BatchStatus) -> None:
    error = BatchError(code="c", message="m", line=2)
    batch = Batch(
        id="b",
        endpoint="/v1/completions",
        input_file_id="f",
        completion_window="24h",
        status=status,
        created_at=5,
        metadata={"half a character": "\ud800"},
        failed_at=7,
        errors=BatchErrors(data=[error]),
    )
    message = to_message(batch)
    assert pb.BatchStatus.Name(message.status) == f"BATCH_STATUS_{status.name}"
    assert (message.create_time.seconds, message.end_time.seconds) == (5, 7)
    assert not message.HasField("pause_time")
    assert dict(message.metadata) == {"half a character": "\\ud800"}
    assert list(message.errors) == [pb.BatchError(code="c", message="m", line=2)]


def test_results_that_hold_half_a_character_can_be_sent() -> None:
    answered = format_output("batch_0", 1, "a\ud800", 200, "r", {"text": "b\ud800"})
    failed = format_error("batch_0", 2, "a\ud800", "c", "m\ud800")
    one, other = read_results(answered + b"\n" + failed).results
    assert (one.custom_id, json.loads(one.body)) == ("a\\ud800", {"text": "b\ud800"})
    assert (other.status_code, other.body, other.error.message) == (0, "", "m\\ud800")


# Events.


async def parts(*texts: str | bytes) -> AsyncIterator[str | bytes]:
    for text in texts:
        yield text


async def test_events_are_read_however_they_are_cut() -> None:
    stream = parts(
        'data: {"n"', ': 1}\n\ndata: {"n": 2}\n', "\n", b": waiting\n\n", 'data: {"n": 3}\n\ndata: [DONE]\n\n'
    )
    assert [event["n"] async for event in read_events(stream)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("event", "status", "code"),
    [
        (lost_event(), 503, LOST_CODE),
        ('data: {"error": {"message": "m", "type": "BadRequestError", "code": 400}}\n\n', 400, None),
        ('data: {"error": {"message": "m", "type": "rate_limit_error", "code": "c"}}\n\n', 429, "c"),
        ('data: {"error": {"message": "m", "type": "server_error", "code": null}}\n\n', 500, None),
        ('data: {"n": 1}\n\n', 502, "stream_broken"),
    ],
)
async def test_a_stream_that_breaks_off_says_why(event: str, status: int, code: str | None) -> None:
    with pytest.raises(ApiError) as broken:
        async for _ in read_events(parts(event)):
            pass
    assert (broken.value.status, broken.value.code) == (status, code)


# Methods.


class Front(GrpcMethods):
    """A front whose routes do as the prompt says, and keep what they were asked."""

    def __init__(self) -> None:
        self.only_model = "m"
        self.asked: list[tuple[Any, Request]] = []
        self.cancelled = asyncio.Event()

    @property
    def jobs(self) -> Any:
        raise ApiError(503, "no queue")

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        raise ReplicaLost("lost")

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        self.asked.append((body, request))
        answer = {"id": "i", "model": body.model, "choices": [{"index": 0, "text": "a"}]}
        if not body.stream:
            return JSONResponse(answer)
        return StreamingResponse(self._stream(str(body.prompt), f"data: {json.dumps(answer)}\n\n"))

    async def _stream(self, prompt: str, event: str) -> AsyncIterator[str]:
        yield event
        if prompt == "break":
            yield lost_event()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def test_the_request_is_that_of_the_http_api_with_its_key() -> None:
    front = Front()
    async with serve_methods(front) as channel:
        request = pb.GenerateRequest(prompt="p", sampling=pb.Sampling(max_tokens=5))
        metadata = (("authorization", "Bearer sk-1"), ("priority", "0"))
        message = await GenerationServiceStub(channel).Generate(request, metadata=metadata, timeout=TIMEOUT_S)
    assert message.choices[0].text == "a"
    ((body, http),) = front.asked
    assert (body.model, body.prompt, body.max_tokens) == ("m", "p", 5)
    # Nothing else of what a client sends beside its request counts.
    assert dict(http.headers) == {"authorization": "Bearer sk-1"}
    assert await http.json() == {"model": "m", "prompt": "p", "max_tokens": 5}
    assert not await http.is_disconnected()


async def test_a_replica_that_is_lost_is_unavailable_before_and_in_a_stream() -> None:
    async with serve_methods(Front()) as channel:
        generation = GenerationServiceStub(channel)
        stream = generation.GenerateStream(pb.GenerateStreamRequest(prompt="break"), timeout=TIMEOUT_S)
        pieces: list[pb.GenerateStreamResponse] = []

        async def read_all() -> None:
            pieces.extend([piece async for piece in stream])

        for call in (generation.Generate(pb.GenerateRequest(chat=CHAT), timeout=TIMEOUT_S), read_all()):
            with pytest.raises(grpc.RpcError) as ended:
                await call
            assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
            assert read_details(ended.value)["ErrorInfo"].reason == LOST_CODE.upper()


async def test_a_stream_that_nobody_reads_any_more_is_closed() -> None:
    front = Front()
    async with serve_methods(front) as channel:
        stream = GenerationServiceStub(channel).GenerateStream(pb.GenerateStreamRequest(prompt="p"), timeout=TIMEOUT_S)
        assert (await stream.read()).choices[0].text == "a"
        stream.cancel()
        async with asyncio.timeout(TIMEOUT_S):
            await front.cancelled.wait()
