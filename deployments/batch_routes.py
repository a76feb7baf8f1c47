"""HTTP routes of the OpenAI Batch API and of what goes beyond it, on top of `conserve.jobs.service.JobService`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from conserve.jobs.batch import HIGHEST_PRIORITY, LOWEST_PRIORITY, Batch, BatchEndpoint, BatchList
from conserve.jobs.expiry import ExpiresAfter
from conserve.jobs.service import MAX_BATCHES_PAGE, JobService
from deployments.api_errors import describe_errors
from deployments.file_routes import build_file_router
from deployments.tenancy import as_tenant
from deployments.tracing import trace_batch

JSON_LINES = "application/jsonl"

# The service says what is wrong with these in words of its own; here they are described only.
Endpoint = Annotated[str, Field(json_schema_extra={"enum": [str(one) for one in BatchEndpoint]})]
Window = Annotated[
    str,
    Field(
        description="Time to complete the batch in: a number of minutes, hours or days.",
        json_schema_extra={"pattern": "^[1-9][0-9]{0,8}[mhd]$", "examples": ["24h", "10m", "7d"]},
    ),
]
Metadata = Annotated[
    dict[str, str],
    Field(
        json_schema_extra={
            "maxProperties": 16,
            "propertyNames": {"maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 512},
        }
    ),
]
Priority = Annotated[
    int,
    Field(
        description="Batches of higher priority go first; online requests always go before all of them.",
        json_schema_extra={"minimum": LOWEST_PRIORITY, "maximum": HIGHEST_PRIORITY},
    ),
]


class CreateBatch(BaseModel):
    """Body of POST /v1/batches: https://platform.openai.com/docs/api-reference/batch/create, and a `priority`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str
    endpoint: Endpoint
    completion_window: Window
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None
    priority: Priority = 0


class UpdateBatch(BaseModel):
    """Body of POST /v1/batches/{batch_id}."""

    model_config = ConfigDict(extra="forbid", strict=True)

    priority: Priority


class BatchPage(BaseModel):
    """Query of GET /v1/batches: https://platform.openai.com/docs/api-reference/batch/list."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(None, description="The last batch of the page before.")
    limit: int = Field(20, ge=1, le=MAX_BATCHES_PAGE)


class ResultsQuery(BaseModel):
    """Query of GET /v1/batches/{batch_id}/results."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(0, ge=0, description="How many lines you have: these are left out.")
    follow: bool = Field(False, description="Wait for more until the batch has ended; blank lines keep it alive.")


_LINES: dict[str, Any] = {
    "description": "Lines of the output and error files, in the order in which the requests were done.",
    "content": {JSON_LINES: {"schema": {"type": "string"}}},
}


def build_batch_router(get_service: Callable[[], JobService]) -> APIRouter:
    """Makes the routes of batches and of files.

    `get_service` is called for each request, so the service may be made after the routes. The application also needs
    `api_errors.install_api_error_handlers`.
    """
    router = APIRouter(tags=["batches"])
    service = Depends(as_tenant(get_service))

    @router.post("/v1/batches", responses=describe_errors(429))
    async def create_batch(body: CreateBatch, request: Request, jobs: JobService = service) -> Batch:
        """Accepts a batch; it is on disk when this answers, and validated afterwards."""

        async def create(traceparent: str | None) -> Batch:
            return await jobs.create_batch(
                body.input_file_id,
                body.endpoint,
                body.completion_window,
                body.metadata,
                output_expires_after=body.output_expires_after,
                priority=body.priority,
                traceparent=traceparent,
            )

        return await trace_batch(request.headers, body.endpoint, create)

    @router.get("/v1/batches", responses=describe_errors(404))
    async def list_batches(page: Annotated[BatchPage, Query()], jobs: JobService = service) -> BatchList:
        """The caller's batches, newest first."""
        return await jobs.list_batches(page.after, page.limit)

    @router.get("/v1/batches/{batch_id}", responses=describe_errors(404))
    async def get_batch(batch_id: str, jobs: JobService = service) -> Batch:
        """A batch as it is now."""
        return await jobs.get_batch(batch_id)

    @router.post("/v1/batches/{batch_id}", responses=describe_errors(404, 409))
    async def update_batch(batch_id: str, body: UpdateBatch, jobs: JobService = service) -> Batch:
        """Gives a batch another priority."""
        return await jobs.prioritise_batch(batch_id, body.priority)

    @router.post("/v1/batches/{batch_id}/cancel", responses=describe_errors(404, 409))
    async def cancel_batch(batch_id: str, jobs: JobService = service) -> Batch:
        """Cancels a batch; what is done so far is kept. Again is no error."""
        return await jobs.cancel_batch(batch_id)

    @router.post("/v1/batches/{batch_id}/pause", responses=describe_errors(404, 409))
    async def pause_batch(batch_id: str, jobs: JobService = service) -> Batch:
        """Begins no further request of a batch."""
        return await jobs.pause_batch(batch_id)

    @router.post("/v1/batches/{batch_id}/resume", responses=describe_errors(404, 409))
    async def resume_batch(batch_id: str, jobs: JobService = service) -> Batch:
        """Goes on with a batch that was paused."""
        return await jobs.resume_batch(batch_id)

    @router.get(
        "/v1/batches/{batch_id}/results",
        response_class=StreamingResponse,
        responses={200: _LINES, **describe_errors(404, 410, 429)},
    )
    async def stream_results(
        batch_id: str, query: Annotated[ResultsQuery, Query()], jobs: JobService = service
    ) -> StreamingResponse:
        """Results as they come, in the order in which they were done."""
        lines = await jobs.stream_results(batch_id, query.after, follow=query.follow)
        return StreamingResponse(lines, media_type=JSON_LINES)

    both = APIRouter()
    both.include_router(build_file_router(get_service))
    both.include_router(router)
    return both
