"""HTTP routes of the OpenAI Files API, on top of `conserve.jobs.file_service.FileService`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from conserve.jobs.answers import file_too_large, storage_unavailable
from conserve.jobs.batch import FileDeleted, FileList, FileObject
from conserve.jobs.errors import ApiError
from conserve.jobs.expiry import LONGEST_S, SHORTEST_S, ExpiresAfter
from conserve.jobs.file_service import MAX_FILES_PAGE, FileService
from deployments.api_errors import describe_errors, missing, unknown
from deployments.tenancy import as_tenant

_CHUNK_BYTES = 1 << 20
LONGEST_SILENCE_S = 60.0  # Of a client in the middle of an upload, which keeps others from theirs.
_FORM_BYTES = 1 << 16  # What a form holds besides the file: boundaries, headers, the other fields.
_CHARSET = b"utf-8"
_LONGEST_NUMBER = 20  # Digits; Python refuses to read thousands of them.
_EXPIRY_FIELDS = {f"expires_after[{name}]": name for name in ExpiresAfter.model_fields}

_UPLOAD_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "JSON lines, one request each."},
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": SHORTEST_S,
            "maximum": LONGEST_S,
            "description": "The file is deleted so many seconds after it was created.",
        },
    },
    # Both or none.
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
}
_UPLOAD_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD_FORM}}}}
_BINARY: dict[str, Any] = {
    "description": "The content of the file.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}


class FilePage(BaseModel):
    """Query of GET /v1/files: https://platform.openai.com/docs/api-reference/files/list."""

    model_config = ConfigDict(extra="forbid")

    purpose: str | None = Field(None, description="Files have `batch` or `batch_output`; of others there are none.")
    after: str | None = Field(None, description="The last file of the page before.")
    limit: int = Field(MAX_FILES_PAGE, ge=1, le=MAX_FILES_PAGE)
    order: Literal["asc", "desc"] = Field("desc", description="By `created_at`.")


def build_file_router(get_service: Callable[[], FileService]) -> APIRouter:
    """Makes the routes. `get_service` is called for each request, so the service may be made after the routes."""
    router = APIRouter(tags=["files"])
    service = Depends(as_tenant(get_service))

    @router.post("/v1/files", responses=describe_errors(408, 413, 429), openapi_extra=_UPLOAD_BODY)
    async def upload_file(request: Request, files: FileService = service) -> FileObject:
        """Takes a file of batch requests."""
        with files.uploading():
            form = await _parse_form(request, files.max_file_bytes)
            try:
                upload, purpose = form.get("file"), form.get("purpose")
                if not isinstance(upload, UploadFile):
                    raise missing("file")
                if not isinstance(purpose, str):
                    raise missing("purpose")
                for name in form.keys() - {"file", "purpose"} - _EXPIRY_FIELDS.keys():
                    raise unknown(name)
                expires_after = _read_expiry(form)
                return await files.upload_file(upload.filename or "", purpose, _read(upload), expires_after)
            finally:
                await form.close()

    @router.get("/v1/files", responses=describe_errors(404))
    async def list_files(page: Annotated[FilePage, Query()], files: FileService = service) -> FileList:
        """The caller's files."""
        return await files.list_files(page.purpose, page.after, page.limit, page.order)

    @router.get("/v1/files/{file_id}", responses=describe_errors(404))
    async def get_file(file_id: str, files: FileService = service) -> FileObject:
        """A file, without its content."""
        return await files.get_file(file_id)

    @router.delete("/v1/files/{file_id}", responses=describe_errors(404, 409))
    async def delete_file(file_id: str, files: FileService = service) -> FileDeleted:
        """Deletes a file that no unfinished batch uses."""
        return await files.delete_file(file_id)

    @router.get(
        "/v1/files/{file_id}/content",
        response_class=StreamingResponse,
        responses={200: _BINARY, **describe_errors(404)},
    )
    async def get_file_content(file_id: str, files: FileService = service) -> StreamingResponse:
        """The content of a file."""
        content = await files.file_content(file_id)
        headers = {
            "Content-Length": str(content.file.bytes),
            "Content-Disposition": f"attachment; filename*=utf-8''{quote(content.file.filename, safe='')}",
        }
        return StreamingResponse(content.chunks, media_type="application/octet-stream", headers=headers)

    return router


async def _parse_form(request: Request, max_file_bytes: int) -> FormData:
    """Reads a multipart form, its file spooled to disk; refuses one that is too long before taking it all in."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise ApiError(400, "Send the file as multipart/form-data with the fields 'file' and 'purpose'.", param="file")
    # The parser would look for a codec of that name, whatever it is; some of Python's raise what it does not expect.
    if parse_options_header(kind)[1].get(b"charset", _CHARSET).lower() != _CHARSET:
        raise ApiError(400, "The fields of the form are read as UTF-8: leave 'charset' out.", param="file")
    limit = max_file_bytes + _FORM_BYTES
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:_LONGEST_NUMBER]) > limit:
        raise file_too_large(max_file_bytes)

    async def stream() -> AsyncGenerator[bytes, None]:
        size = 0
        chunks = request.stream()
        while (chunk := await _next(chunks)) is not None:
            size += len(chunk)
            if size > limit:
                raise file_too_large(max_file_bytes)
            yield chunk

    try:
        return await MultiPartParser(request.headers, stream(), max_files=1, max_part_size=_FORM_BYTES).parse()
    except MultiPartException as error:
        raise ApiError(400, f"The form cannot be read: {error.message}", param="file") from None
    except OSError as error:  # The disk for temporary files is full.
        raise storage_unavailable(error) from error


async def _next(chunks: AsyncGenerator[bytes, None]) -> bytes | None:
    try:
        async with asyncio.timeout(LONGEST_SILENCE_S):
            return await anext(chunks, None)
    except TimeoutError:
        message = f"Nothing of the file has come for {LONGEST_SILENCE_S:g} s."
        raise ApiError(408, message, param="file", code="upload_timeout") from None


def _read_expiry(form: FormData) -> ExpiresAfter | None:
    fields = {name: form[field] for field, name in _EXPIRY_FIELDS.items() if field in form}
    if not fields:
        return None
    try:
        return ExpiresAfter.model_validate(fields, strict=False)  # In a form numbers are text.
    except ValidationError as error:
        problems = [dict(problem, loc=("body", "expires_after", *problem["loc"])) for problem in error.errors()]
        raise RequestValidationError(problems) from None


async def _read(upload: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await upload.read(_CHUNK_BYTES):
        yield chunk
