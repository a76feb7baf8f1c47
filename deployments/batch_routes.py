"""HTTP routes of the OpenAI Files and Batch APIs, on top of `conserve.jobs.service.JobService`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from conserve.jobs.batch import Batch, BatchList, FileDeleted, FileList, FileObject
from conserve.jobs.errors import ApiError
from conserve.jobs.service import JobService, file_too_large

_CHUNK_BYTES = 1 << 20
_FORM_BYTES = 1 << 16  # What a form holds besides the file: boundaries, headers, the purpose.


class CreateBatch(BaseModel):
    """Body of POST /v1/batches: https://platform.openai.com/docs/api-reference/batch/create."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


def build_batch_router(get_service: Callable[[], JobService]) -> APIRouter:
    """Makes the routes. `get_service` is called for each request, so the service may be made after the routes.

    The application also needs `install_error_handlers`.
    """
    router = APIRouter()

    @router.post("/v1/files")
    async def upload_file(request: Request) -> FileObject:
        service = get_service()
        form = await _parse_form(request, service.max_file_bytes)
        try:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile):
                raise _missing("file")
            if not isinstance(purpose, str):
                raise _missing("purpose")
            for name in form.keys() - {"file", "purpose"}:
                raise _unknown(name)
            return await service.upload_file(upload.filename or "", purpose, _read(upload))
        finally:
            await form.close()

    @router.get("/v1/files")
    async def list_files(
        purpose: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query()] = 10_000,
        order: str = "desc",
    ) -> FileList:
        return await get_service().list_files(purpose, after, limit, order)

    @router.get("/v1/files/{file_id}")
    async def get_file(file_id: str) -> FileObject:
        return await get_service().get_file(file_id)

    @router.delete("/v1/files/{file_id}")
    async def delete_file(file_id: str) -> FileDeleted:
        return await get_service().delete_file(file_id)

    @router.get("/v1/files/{file_id}/content", response_class=StreamingResponse)
    async def get_file_content(file_id: str) -> StreamingResponse:
        content = await get_service().file_content(file_id)
        headers = {
            "Content-Length": str(content.file.bytes),
            "Content-Disposition": f"attachment; filename*=utf-8''{quote(content.file.filename, safe='')}",
        }
        return StreamingResponse(content.chunks, media_type="application/octet-stream", headers=headers)

    @router.post("/v1/batches")
    async def create_batch(body: CreateBatch) -> Batch:
        return await get_service().create_batch(
            body.input_file_id, body.endpoint, body.completion_window, body.metadata
        )

    @router.get("/v1/batches")
    async def list_batches(after: str | None = None, limit: Annotated[int, Query()] = 20) -> BatchList:
        return await get_service().list_batches(after, limit)

    @router.get("/v1/batches/{batch_id}")
    async def get_batch(batch_id: str) -> Batch:
        return await get_service().get_batch(batch_id)

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel_batch(batch_id: str) -> Batch:
        return await get_service().cancel_batch(batch_id)

    return router


def install_error_handlers(app: FastAPI) -> None:
    """Makes the application answer `ApiError` and malformed requests with the error body of the OpenAI API."""
    app.exception_handler(ApiError)(_answer_api_error)
    app.exception_handler(RequestValidationError)(_answer_validation_error)


async def _answer_api_error(_request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _answer_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    problem: dict[str, Any] = error.errors()[0]
    place = [str(part) for part in problem["loc"][1:]]
    if problem["type"] == "json_invalid":
        answer = ApiError(400, "The body of the request is not valid JSON.")
    elif not place:
        answer = ApiError(400, f"The request is not valid: {problem['msg']}.")
    elif problem["type"] == "missing":
        answer = _missing(".".join(place))
    elif problem["type"] == "extra_forbidden":
        answer = _unknown(".".join(place))
    else:
        name = ".".join(place)
        answer = ApiError(400, f"Invalid value for '{name}': {problem['msg']}.", param=place[0], code="invalid_type")
    return await _answer_api_error(request, answer)


async def _parse_form(request: Request, max_file_bytes: int) -> FormData:
    """Reads a multipart form, its file spooled to disk; refuses one that is too long before taking it all in."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(400, "Send the file as multipart/form-data with the fields 'file' and 'purpose'.", param="file")
    limit = max_file_bytes + _FORM_BYTES
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise file_too_large(max_file_bytes)

    async def stream() -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise file_too_large(max_file_bytes)
            yield chunk

    try:
        return await MultiPartParser(request.headers, stream(), max_files=1, max_part_size=_FORM_BYTES).parse()
    except MultiPartException as error:
        raise ApiError(400, f"The form cannot be read: {error.message}", param="file") from None


async def _read(upload: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await upload.read(_CHUNK_BYTES):
        yield chunk


def _missing(name: str) -> ApiError:
    return ApiError(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def _unknown(name: str) -> ApiError:
    return ApiError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
