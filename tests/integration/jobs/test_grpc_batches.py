"""Batches over gRPC, on a real Redis: the methods of the front, on a gRPC server without Serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from conserve.config import Settings
from conserve.jobs import result_feed
from conserve.jobs.service import JobService
from deployments.grpc_front.methods import GrpcMethods
from deployments.protos import conserve_pb2 as pb
from deployments.protos.conserve_pb2_grpc import BatchServiceStub
from tests.grpc_server import read_details, serve_methods
from tests.integration.bench import LONG_MS, MODEL, TIMEOUT_S, URL, Bench, make_input, stream

KEY = (("authorization", "Bearer sk-of-a"),)


class Front(GrpcMethods):
    """The part of the ingress that batches need."""

    def __init__(self, jobs: JobService) -> None:
        self.jobs = jobs
        self.only_model = MODEL


@pytest.fixture
async def batches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BatchServiceStub]:
    monkeypatch.setattr(result_feed, "_LONGEST_PAUSE_S", 0.1)
    async with serve_methods(Front(bench.service)) as channel:
        yield BatchServiceStub(channel)


def inline(count: int, kind: str = "chat") -> pb.InlineRequests:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="say it")])
    content = {"chat": chat} if kind == "chat" else {"prompt": "say it"}
    return pb.InlineRequests(
        requests=[
            pb.InlineRequest(custom_id=f"id-{number}", request=pb.GenerateRequest(**content))
            for number in range(1, count + 1)
        ]
    )


async def follow(batches: BatchServiceStub, batch_id: str, after: int = 0) -> list[pb.BatchResult]:
    request = pb.StreamResultsRequest(batch_id=batch_id, after=after, follow=True)
    return [result async for message in batches.StreamResults(request, timeout=TIMEOUT_S) for result in message.results]


async def work(bench: Bench, batch_id: str) -> None:
    while not (await bench.get(batch_id)).status.ended:
        await bench.keeper.run_once()
        if claimed := await bench.queue.claim(batch_id, 5, LONG_MS, "a"):
            await bench.finish(claimed)
        await asyncio.sleep(0.02)


async def test_requests_are_sent_and_results_followed(batches: BatchServiceStub, bench: Bench) -> None:
    request = pb.CreateBatchRequest(
        requests=inline(12),
        completion_window="24h",
        metadata={"k": "v"},
        priority=7,
        output_expires_after=Duration(seconds=7200),
    )
    batch = (await batches.CreateBatch(request)).batch
    assert (batch.status, batch.endpoint, batch.priority) == (pb.BATCH_STATUS_VALIDATING, URL, 7)
    assert dict(batch.metadata) == {"k": "v"}
    assert batch.expire_time.seconds == batch.create_time.seconds + 86_400
    assert not batch.HasField("end_time")
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as group:
        followed = group.create_task(follow(batches, batch.id))
        group.create_task(work(bench, batch.id))
    results = followed.result()
    assert [result.custom_id for result in results] == [f"id-{number}" for number in range(1, 13)]
    assert {(result.status_code, result.HasField("error")) for result in results} == {(200, False)}
    assert json.loads(results[0].body)["echo"] == "say it"

    done = (await batches.GetBatch(pb.GetBatchRequest(batch_id=batch.id))).batch
    assert (done.status, done.model) == (pb.BATCH_STATUS_COMPLETED, MODEL)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (12, 12, 0)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (12 * 7, 12 * 3)
    assert done.HasField("end_time")
    # Over gRPC and over HTTP they are the same.
    stored = await bench.read(done.output_file_id)
    assert [json.loads(result.body) for result in results] == [line["response"]["body"] for line in stored]
    assert [result.id for result in results] == [line["id"] for line in stored]
    # A stream goes on where another one has broken off.
    assert await follow(batches, batch.id, after=10) == results[10:]


async def test_a_file_that_was_uploaded_over_http_will_do(batches: BatchServiceStub, bench: Bench) -> None:
    file = await bench.service.upload_file("in.jsonl", "batch", stream(make_input(3)))
    request = pb.CreateBatchRequest(input_file_id=file.id, endpoint=URL, completion_window="1h")
    batch = (await batches.CreateBatch(request)).batch
    assert (batch.input_file_id, batch.completion_window) == (file.id, "1h")


async def test_pages_and_cancellation(batches: BatchServiceStub, bench: Bench) -> None:
    made = [await bench.start(2) for _ in range(3)]
    page = await batches.ListBatches(pb.ListBatchesRequest(limit=2))
    assert ([batch.id for batch in page.batches], page.has_more) == ([made[2], made[1]], True)
    page = await batches.ListBatches(pb.ListBatchesRequest(after=made[1]))
    assert ([batch.id for batch in page.batches], page.has_more) == ([made[0]], False)
    for _ in range(2):
        cancelled = (await batches.CancelBatch(pb.CancelBatchRequest(batch_id=made[0]))).batch
        assert cancelled.status == pb.BATCH_STATUS_CANCELLING
    await bench.end(made[0])
    results = await follow(batches, made[0])
    assert [(one.status_code, one.body, one.error.code) for one in results] == [(0, "", "batch_cancelled")] * 2


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.CreateBatchRequest(completion_window="24h", input_file_id="file-12345678", endpoint="/x"), "endpoint"),
        (pb.CreateBatchRequest(completion_window="24h", input_file_id="file-12345678", endpoint=URL), "input_file_id"),
        (pb.CreateBatchRequest(completion_window="24h", endpoint=URL), "input_file_id"),
        (pb.CreateBatchRequest(completion_window="24h", requests=pb.InlineRequests()), "requests"),
        (pb.CreateBatchRequest(completion_window="soon", requests=inline(1)), "completion_window"),
        (pb.CreateBatchRequest(completion_window="24h", requests=inline(1), priority=101), "priority"),
        (pb.CreateBatchRequest(completion_window="24h", requests=inline(1), endpoint="/v1/completions"), "endpoint"),
        (
            pb.CreateBatchRequest(
                completion_window="24h", requests=inline(1), output_expires_after=Duration(seconds=60)
            ),
            "output_expires_after",
        ),
        (
            pb.CreateBatchRequest(
                completion_window="24h",
                requests=pb.InlineRequests(requests=[*inline(1).requests, *inline(1, "prompt").requests]),
            ),
            "requests.1",
        ),
    ],
)
async def test_what_is_wrong_with_a_batch_is_named(
    batches: BatchServiceStub, bench: Bench, request_: pb.CreateBatchRequest, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        await batches.CreateBatch(request_)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = read_details(refused.value)["BadRequest"].field_violations
    assert (violation.field, violation.description) == (field, refused.value.details())
    # Requests of a batch that is refused are not kept.
    assert (await bench.service.list_files()).data == []


async def test_what_there_is_not_is_not_found(batches: BatchServiceStub, bench: Bench) -> None:
    name = "batch_0123456789abcdef"
    calls: list[Awaitable[Any]] = [
        batches.GetBatch(pb.GetBatchRequest(batch_id=name)),
        batches.CancelBatch(pb.CancelBatchRequest(batch_id=name)),
        batches.ListBatches(pb.ListBatchesRequest(after=name)),
        follow(batches, name),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as refused:
            await call
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        assert read_details(refused.value)["ErrorInfo"].reason == "NOT_FOUND"
    ended = await bench.start(1)
    await work(bench, ended)
    with pytest.raises(grpc.RpcError) as refused:
        await batches.CancelBatch(pb.CancelBatchRequest(batch_id=ended))
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_tenants_have_keys_and_quotas(bench: Bench) -> None:
    tenants = {"a": {"api_keys": ["sk-of-a"], "max_queued_requests": 3}, "b": {"api_keys": ["sk-of-b"]}}
    settings = Settings.model_validate(bench.settings.model_dump(mode="json") | {"tenants": tenants})
    jobs = JobService(bench.redis, bench.store, settings, [MODEL])
    async with serve_methods(Front(jobs)) as channel:
        batches = BatchServiceStub(channel)
        request = pb.CreateBatchRequest(requests=inline(2), completion_window="24h")
        for metadata in (None, (("authorization", "Bearer sk-of-c"),)):
            with pytest.raises(grpc.RpcError) as refused:
                await batches.CreateBatch(request, metadata=metadata)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert read_details(refused.value)["ErrorInfo"].reason == "INVALID_API_KEY"
        batch = (await batches.CreateBatch(request, metadata=KEY)).batch
        with pytest.raises(grpc.RpcError) as refused:
            await batches.CreateBatch(request, metadata=KEY)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        details = read_details(refused.value)
        assert details["RetryInfo"].retry_delay.seconds == 60
        assert details["ErrorInfo"].reason == "QUEUED_REQUESTS_EXCEEDED"
        with pytest.raises(grpc.RpcError) as refused:
            await batches.GetBatch(
                pb.GetBatchRequest(batch_id=batch.id), metadata=(("authorization", "Bearer sk-of-b"),)
            )
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
