"""gRPC through Serve's own proxy, with no replica harmed; tests/e2e has it through HAProxy, with a real engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from deployments.protos import conserve_pb2 as pb
from deployments.protos import conserve_pb2_grpc as stubs
from tests.grpc_server import read_details
from tests.integration.deployments.conftest import WAIT_S, Front
from tests.integration.deployments.light_application import MODEL
from tests.integration.deployments.light_replica import GO_ON, STOPPED
from tests.traces import TRACEPARENT

# The application starts within the first test; on a busy machine that takes minutes.
pytestmark = pytest.mark.timeout(600)


SENT_AFTER_S = 0.5
"""Later than spans would be, by the settings of the fixture."""


@pytest.fixture(scope="module")
def channel(front: Front) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(front.grpc_address) as channel:
        yield channel


@pytest.fixture
def generation(channel: grpc.Channel) -> stubs.GenerationServiceStub:
    return stubs.GenerationServiceStub(channel)


def ask(content: str, **fields: Any) -> dict[str, Any]:
    return {"chat": pb.Chat(messages=[pb.ChatMessage(role="user", content=content)]), **fields}


def test_an_answer_comes_whole(front: Front, generation: stubs.GenerationServiceStub) -> None:
    response = generation.Generate(pb.GenerateRequest(**ask("hello")), timeout=WAIT_S)
    (choice,) = response.choices
    assert choice.text in front.replicas
    assert (response.model, choice.finish_reason) == (MODEL, "stop")
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (3, 1)


def test_nothing_is_traced_that_was_not_switched_on(front: Front, generation: stubs.GenerationServiceStub) -> None:
    metadata = [("traceparent", TRACEPARENT)]
    generation.Generate(pb.GenerateRequest(**ask("hello")), timeout=WAIT_S, metadata=metadata)
    time.sleep(SENT_AFTER_S)
    assert front.collector.raw == []


def test_an_answer_comes_in_pieces(front: Front, generation: stubs.GenerationServiceStub) -> None:
    request = pb.GenerateStreamRequest(model=MODEL, **ask("hello"))
    pieces = list(generation.GenerateStream(request, timeout=WAIT_S))
    texts = [choice.text for piece in pieces for choice in piece.choices]
    assert texts[0] in front.replicas
    assert texts[1:] == [" done", ""]
    assert pieces[-1].choices[0].finish_reason == "stop"


def call_both(generation: stubs.GenerationServiceStub, **fields: Any) -> list[grpc.RpcError]:
    errors = []
    with pytest.raises(grpc.RpcError) as refused:
        generation.Generate(pb.GenerateRequest(**fields), timeout=WAIT_S)
    errors.append(refused.value)
    pieces: list[pb.GenerateStreamResponse] = []
    with pytest.raises(grpc.RpcError) as refused:
        pieces.extend(generation.GenerateStream(pb.GenerateStreamRequest(**fields), timeout=WAIT_S))
    assert [choice for piece in pieces for choice in piece.choices] == []
    return [*errors, refused.value]


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "chat"),
        (ask("hello", sampling=pb.Sampling(json_schema="{")), grpc.StatusCode.INVALID_ARGUMENT, "sampling.json_schema"),
        (ask("hello", sampling=pb.Sampling(logprobs=-2)), grpc.StatusCode.INVALID_ARGUMENT, "sampling.logprobs"),
        (ask("hello", sampling=pb.Sampling(n=1_000)), grpc.StatusCode.INVALID_ARGUMENT, "sampling.n"),
        (
            ask("hello", sampling=pb.Sampling(json_schema='{"$ref": "http://127.0.0.1/"}')),
            grpc.StatusCode.INVALID_ARGUMENT,
            "sampling.json_schema",
        ),
        (ask("hello", model="nobody"), grpc.StatusCode.NOT_FOUND, None),
    ],
)
def test_what_is_wrong_is_named(
    generation: stubs.GenerationServiceStub, fields: dict[str, Any], code: grpc.StatusCode, field: str | None
) -> None:
    for error in call_both(generation, **fields):
        assert (error.code(), bool(error.details())) == (code, True)
        if field:
            (violation,) = read_details(error)["BadRequest"].field_violations
            assert (violation.field, violation.description) == (field, error.details())


def test_without_redis_batches_are_told_to_come_back(channel: grpc.Channel) -> None:
    batches = stubs.BatchServiceStub(channel)
    calls: list[Callable[[], Any]] = [
        lambda: batches.CreateBatch(pb.CreateBatchRequest(input_file_id="file-0"), timeout=WAIT_S),
        lambda: batches.GetBatch(pb.GetBatchRequest(batch_id="batch_0"), timeout=WAIT_S),
        lambda: batches.ListBatches(pb.ListBatchesRequest(), timeout=WAIT_S),
        lambda: batches.CancelBatch(pb.CancelBatchRequest(batch_id="batch_0"), timeout=WAIT_S),
        lambda: list(batches.StreamResults(pb.StreamResultsRequest(batch_id="batch_0"), timeout=WAIT_S)),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        details = read_details(refused.value)
        assert details["RetryInfo"].retry_delay.seconds == 5
        assert (details["ErrorInfo"].reason, details["ErrorInfo"].domain) == ("QUEUE_UNAVAILABLE", "conserve")


def test_a_cancelled_stream_is_given_up(front: Front, generation: stubs.GenerationServiceStub) -> None:
    (front.folder / STOPPED).unlink(missing_ok=True)
    stream = generation.GenerateStream(pb.GenerateStreamRequest(**ask(GO_ON)), timeout=WAIT_S)
    assert next(stream).choices[0].text in front.replicas
    assert not (front.folder / STOPPED).exists()
    stream.cancel()
    front.wait_until((front.folder / STOPPED).exists, "the replica goes on")


def test_a_request_whose_deadline_passes_is_given_up(front: Front, generation: stubs.GenerationServiceStub) -> None:
    (front.folder / STOPPED).unlink(missing_ok=True)
    with pytest.raises(grpc.RpcError) as ended:
        generation.Generate(pb.GenerateRequest(**ask(GO_ON)), timeout=2)
    assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    front.wait_until((front.folder / STOPPED).exists, "the replica goes on")


def test_the_services_can_be_found_by_reflection(channel: grpc.Channel) -> None:
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"conserve.v1.GenerationService", "conserve.v1.BatchService"} <= set(services)
