"""The methods that Serve calls by the names of the RPCs.

Serve sends gRPC calls to the ingress of an application, so these are methods of the class that has the HTTP routes.
They call those, and the service of the batch routes: what is checked, limited and counted there is so here, too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import unquote

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from google.protobuf.message import Message
from pydantic import TypeAdapter, ValidationError
from ray.serve.grpc_util import RayServegRPCContext

from conserve.jobs.answers import invalid
from conserve.jobs.api_keys import Scope
from conserve.jobs.batch import Batch, BatchEndpoint
from conserve.jobs.errors import ApiError
from conserve.jobs.service import JobService
from conserve.telemetry.spans import TRACE_HEADERS
from deployments.api_errors import to_validation_error
from deployments.grpc_front.batches import read_expiry, read_results, to_content, to_message, write_lines
from deployments.grpc_front.events import read_events
from deployments.grpc_front.generation import Generation, read_answer, read_piece, to_body
from deployments.grpc_front.status import set_status
from deployments.online_trace import GRPC_SCHEME
from deployments.protos import conserve_pb2 as pb
from deployments.ray_compat import ChatCompletionRequest, CompletionRequest
from deployments.request_bodies import CHAT_BODY, COMPLETION_BODY
from deployments.tenancy import is_local
from deployments.tracing import trace_batch

FILENAME: Final = "grpc.jsonl"
DEFAULT_PAGE: Final = 20
_SERVICE: Final = pb.DESCRIPTOR.services_by_name["GenerationService"].full_name

Answer = TypeVar("Answer", bound=Message)


class HttpFront(Protocol):
    """What the methods need of the class that they are part of."""

    @property
    def only_model(self) -> str | None:
        """The model of requests that name none, where a single one is served."""

    @property
    def jobs(self) -> JobService:
        """The offline queue."""

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """Answers a chat."""

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Answers a completion."""


class GrpcMethods:
    """Part of a class with the HTTP routes. Each method ends with a status of `status.set_status` if it fails."""

    async def Generate(  # noqa: N802 - Serve looks for the name that the RPC has, here and below
        self: HttpFront, request: pb.GenerateRequest, grpc_context: RayServegRPCContext
    ) -> pb.GenerateResponse:
        """The whole answer."""

        async def generate() -> pb.GenerateResponse:
            response = await _ask(self, request, grpc_context)
            return read_answer(json.loads(bytes(response.body)))

        return await _answer(generate(), grpc_context, pb.GenerateResponse())

    async def GenerateStream(  # noqa: N802
        self: HttpFront, request: pb.GenerateStreamRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.GenerateStreamResponse, None]:
        """The answer as it comes."""

        async def generate() -> AsyncGenerator[pb.GenerateStreamResponse, None]:
            response = await _ask(self, request, grpc_context, stream=True)
            assert isinstance(response, StreamingResponse)  # noqa: S101 - its body asks for a stream
            async with aclosing(read_events(response.body_iterator)) as events:
                async for event in events:
                    if (piece := read_piece(event)) is not None:
                        yield piece

        async with aclosing(_stream(generate(), grpc_context, pb.GenerateStreamResponse())) as pieces:
            async for piece in pieces:
                yield piece

    async def CreateBatch(  # noqa: N802
        self: HttpFront, request: pb.CreateBatchRequest, grpc_context: RayServegRPCContext
    ) -> pb.CreateBatchResponse:
        """Accepts a batch."""

        async def create() -> pb.CreateBatchResponse:
            jobs = _find_jobs(self, grpc_context)

            async def hand_in(traceparent: str | None) -> Batch:
                return await _create_batch(jobs, request, self.only_model, traceparent)

            batch = await trace_batch(_find_trace(grpc_context), request.endpoint, hand_in)
            return pb.CreateBatchResponse(batch=to_message(batch))

        return await _answer(create(), grpc_context, pb.CreateBatchResponse())

    async def GetBatch(  # noqa: N802
        self: HttpFront, request: pb.GetBatchRequest, grpc_context: RayServegRPCContext
    ) -> pb.GetBatchResponse:
        """A batch as it is now."""

        async def get() -> pb.GetBatchResponse:
            batch = await _find_jobs(self, grpc_context).get_batch(request.batch_id)
            return pb.GetBatchResponse(batch=to_message(batch))

        return await _answer(get(), grpc_context, pb.GetBatchResponse())

    async def ListBatches(  # noqa: N802
        self: HttpFront, request: pb.ListBatchesRequest, grpc_context: RayServegRPCContext
    ) -> pb.ListBatchesResponse:
        """A page of the caller's batches."""

        async def get() -> pb.ListBatchesResponse:
            limit = request.limit if request.HasField("limit") else DEFAULT_PAGE
            page = await _find_jobs(self, grpc_context).list_batches(request.after or None, limit)
            return pb.ListBatchesResponse(batches=[to_message(batch) for batch in page.data], has_more=page.has_more)

        return await _answer(get(), grpc_context, pb.ListBatchesResponse())

    async def CancelBatch(  # noqa: N802
        self: HttpFront, request: pb.CancelBatchRequest, grpc_context: RayServegRPCContext
    ) -> pb.CancelBatchResponse:
        """Cancels a batch."""

        async def cancel() -> pb.CancelBatchResponse:
            batch = await _find_jobs(self, grpc_context).cancel_batch(request.batch_id)
            return pb.CancelBatchResponse(batch=to_message(batch))

        return await _answer(cancel(), grpc_context, pb.CancelBatchResponse())

    async def StreamResults(  # noqa: N802
        self: HttpFront, request: pb.StreamResultsRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.StreamResultsResponse, None]:
        """Results in the order in which they were done."""

        async def follow() -> AsyncGenerator[pb.StreamResultsResponse, None]:
            jobs = _find_jobs(self, grpc_context)
            lines = await jobs.stream_results(request.batch_id, request.after, follow=request.follow)
            async with aclosing(lines):
                async for piece in lines:
                    yield read_results(piece)

        async with aclosing(_stream(follow(), grpc_context, pb.StreamResultsResponse())) as pieces:
            async for piece in pieces:
                yield piece


async def _ask(
    front: HttpFront, request: Generation, context: RayServegRPCContext, *, stream: bool = False
) -> Response:
    endpoint, body = to_body(request, front.only_model, stream=stream)
    http_request = _to_http_request(body, context, "GenerateStream" if stream else "Generate")
    if endpoint == BatchEndpoint.CHAT_COMPLETIONS:
        return await front.chat(_parse(CHAT_BODY, body), http_request)
    return await front.completions(_parse(COMPLETION_BODY, body), http_request)


def _parse(kind: TypeAdapter[Any], body: dict[str, Any]) -> Any:
    """As FastAPI does for the HTTP routes."""
    try:
        return kind.validate_python(body)
    except ValidationError as error:
        raise to_validation_error(error) from None


async def _create_batch(
    jobs: JobService, request: pb.CreateBatchRequest, default_model: str | None, traceparent: str | None
) -> Batch:
    kept = read_expiry(request.output_expires_after) if request.HasField("output_expires_after") else None
    endpoint, file_id = request.endpoint, request.input_file_id
    kind = request.WhichOneof("input")
    if kind is None:
        raise invalid("Set one of 'input_file_id' and 'requests'.", "input_file_id", "missing_required_parameter")
    if kind == "requests":
        endpoint, content = write_lines(request.requests, default_model)
        if request.endpoint not in ("", endpoint):
            raise invalid(f"'endpoint' must be '{endpoint}' for these requests, or left out.", "endpoint")
        with jobs.uploading():
            file_id = (await jobs.upload_file(FILENAME, "batch", to_content(content))).id
    try:
        return await jobs.create_batch(
            file_id,
            endpoint,
            request.completion_window,
            dict(request.metadata) or None,
            output_expires_after=kept,
            priority=request.priority,
            traceparent=traceparent,
        )
    except BaseException:
        if kind == "requests":
            with suppress(ApiError):  # There is a batch all the same, or Redis is away: it goes when it is too old.
                await jobs.delete_file(file_id)
        raise


def _find_jobs(front: HttpFront, context: RayServegRPCContext) -> JobService:
    """The offline queue as the caller's tenant sees it."""
    jobs = front.jobs
    authorization, peer = _find_authorization(context), _find_peer(context)
    return jobs.for_tenant(jobs.tenants.admit(authorization, Scope.OFFLINE, is_local=is_local(peer)).tenant)


def _find_authorization(context: RayServegRPCContext) -> str | None:
    found: str | None = dict(context.invocation_metadata()).get("authorization")
    return found


def _find_peer(context: RayServegRPCContext) -> str | None:
    """The address that a call comes from: gRPC has it as `ipv4:127.0.0.1:50000` or `ipv6:%5B::1%5D:50000`."""
    kind, _, place = unquote(context.peer() or "").partition(":")
    return place.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else None


def _find_trace(context: RayServegRPCContext) -> dict[str, str]:
    """The headers of the trace that the caller continues."""
    metadata = dict(context.invocation_metadata())
    return {name: str(metadata[name]) for name in TRACE_HEADERS if name in metadata}


def _to_http_request(body: dict[str, Any], context: RayServegRPCContext, method: str) -> Request:
    """The request that the HTTP API would have had. Its client does not go: its call is cancelled instead."""
    key = _find_authorization(context)
    headers = [] if key is None else [(b"authorization", key.encode("latin-1"))]
    headers += [(name.encode(), value.encode("latin-1")) for name, value in _find_trace(context).items()]
    messages = iter([{"type": "http.request", "body": json.dumps(body).encode()}])

    async def receive() -> dict[str, Any]:
        if (message := next(messages, None)) is not None:
            return message
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    peer = _find_peer(context)
    way: dict[str, Any] = {"type": "http", "scheme": GRPC_SCHEME, "method": "POST", "path": f"/{_SERVICE}/{method}"}
    way["client"] = None if peer is None else (peer, 0)
    return Request({**way, "query_string": b"", "headers": headers}, receive)


async def _answer(work: Coroutine[Any, Any, Answer], context: RayServegRPCContext, empty: Answer) -> Answer:
    try:
        return await work
    except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status and no traceback
        set_status(context, error)
        return empty


async def _stream(
    messages: AsyncGenerator[Answer, None], context: RayServegRPCContext, empty: Answer
) -> AsyncGenerator[Answer, None]:
    try:
        async with aclosing(messages):
            async for message in messages:
                yield message
    except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status and no traceback
        set_status(context, error)
        yield empty
