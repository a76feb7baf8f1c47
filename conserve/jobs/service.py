"""What the HTTP, gRPC and CLI fronts call: files and batches, with the answers of the OpenAI API."""

from __future__ import annotations

import functools
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from conserve.config import Settings
from conserve.jobs.batch import (
    BATCH_ID,
    FILE_ID,
    FILE_PURPOSES,
    Batch,
    BatchEndpoint,
    BatchList,
    FileDeleted,
    FileList,
    FileObject,
)
from conserve.jobs.catalog import FileCatalog
from conserve.jobs.errors import (
    ApiError,
    BatchEndedError,
    FileTooLargeError,
    NotDurableError,
    TooManyBatchesError,
)
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from conserve.jobs.window import parse_window

_log = structlog.get_logger(__name__)

_RETRY_AFTER_S = 5
_RETRY_FULL_AFTER_S = 60
_CREATION_S = 60
_MAX_METADATA, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_MAX_FILENAME = 255
_MAX_FILES_PAGE, _MAX_BATCHES_PAGE = 10_000, 100

_Parameters = ParamSpec("_Parameters")
_Answer = TypeVar("_Answer")


def _answers_unavailable(
    method: Callable[_Parameters, Awaitable[_Answer]],
) -> Callable[_Parameters, Awaitable[_Answer]]:
    """Turns outages of Redis and of the file storage into 503 with `Retry-After`."""

    @functools.wraps(method)
    async def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Answer:
        try:
            return await method(*args, **kwargs)
        except (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OutOfMemoryError, NotDurableError) as error:
            _log.warning("batch queue unavailable", reason=str(error))
            raise _unavailable("The batch queue is not available at the moment. Try again later.") from error
        except OSError as error:
            _log.warning("file storage unavailable", reason=str(error))
            raise _unavailable("The file storage is not available at the moment. Try again later.") from error

    return call


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file and its bytes, to be streamed once."""

    file: FileObject
    chunks: AsyncIterator[bytes]


class JobService:
    """The Files and Batch APIs. Every method raises `ApiError` for what a client did wrong and for outages."""

    def __init__(self, redis: Redis, store: FileStore, settings: Settings, models: Collection[str]) -> None:
        self._redis = redis
        self._store = store
        self._settings = settings.jobs
        self._queue = JobQueue(redis, settings)
        self._catalog = FileCatalog(redis, settings.jobs.namespace)
        self.models = frozenset(models)

    @property
    def max_file_bytes(self) -> int:
        """Longest file that `upload_file` takes, in bytes."""
        return self._settings.max_file_bytes

    @_answers_unavailable
    async def upload_file(self, filename: str, purpose: str, stream: AsyncIterable[bytes]) -> FileObject:
        """Stores an input file; it is on disk when this returns."""
        if purpose != "batch":
            raise _invalid(f"'{purpose[:64]}' is not a supported purpose: use 'batch'.", "purpose")
        await self._redis.ping()  # Before megabytes are stored that could not be recorded.
        file_id = f"file-{uuid.uuid4().hex}"
        try:
            size_bytes = await self._store.write_file(file_id, stream, self._settings.max_file_bytes)
        except FileTooLargeError:
            raise file_too_large(self._settings.max_file_bytes) from None
        try:
            return await self._catalog.put(file_id, filename[-_MAX_FILENAME:] or "file.jsonl", purpose, size_bytes)
        except BaseException:
            await self._discard_unrecorded(file_id)
            raise

    @_answers_unavailable
    async def get_file(self, file_id: str) -> FileObject:
        """The File object of an id."""
        file = await self._catalog.get(file_id) if FILE_ID.fullmatch(file_id) else None
        if file is None:
            raise _not_found(f"No such File object: {file_id[:80]}", "id")
        return file

    @_answers_unavailable
    async def list_files(
        self, purpose: str | None = None, after: str | None = None, limit: int = _MAX_FILES_PAGE, order: str = "desc"
    ) -> FileList:
        """A page of the files behind the file `after`, by time (`order` is `asc` or `desc`)."""
        _check_limit(limit, _MAX_FILES_PAGE)
        if order not in ("asc", "desc"):
            raise _invalid("'order' must be 'asc' or 'desc'.", "order")
        if purpose is not None and purpose not in FILE_PURPOSES:
            raise _invalid(f"'purpose' must be one of: {', '.join(FILE_PURPOSES)}.", "purpose")
        page = await self._catalog.page(after, limit, purpose=purpose, newest_first=order == "desc")
        if page is None:
            raise _not_found(f"No such File object: {(after or '')[:80]}", "after")
        return page

    @_answers_unavailable
    async def delete_file(self, file_id: str) -> FileDeleted:
        """Deletes a file that no active batch reads."""
        await self.get_file(file_id)
        users = await self._catalog.users(file_id)
        over = [batch_id for batch_id, since_ms in users.items() if await self._is_over(batch_id, since_ms)]
        await self._catalog.unpin(file_id, over)
        if not await self._catalog.delete(file_id):
            raise ApiError(
                409, f"File {file_id} is used by a batch that has not ended.", param="file_id", code="in_use"
            )
        await self._store.delete_file(file_id)
        return FileDeleted(id=file_id)

    @_answers_unavailable
    async def file_content(self, file_id: str) -> FileContent:
        """The content of a file, as a stream; the first piece is read before this returns."""
        file = await self.get_file(file_id)
        chunks = self._store.stream_file(file_id)
        first = await anext(chunks, b"")
        return FileContent(file, _resume(first, chunks))

    @_answers_unavailable
    async def create_batch(
        self, input_file_id: str, endpoint: str, completion_window: str, metadata: Mapping[str, str] | None = None
    ) -> Batch:
        """Accepts a batch; it is on disk when this returns, and validated afterwards."""
        if endpoint not in tuple(BatchEndpoint):
            raise _invalid(f"'{endpoint[:80]}' is not supported. Use one of: {', '.join(BatchEndpoint)}.", "endpoint")
        try:
            window_s = parse_window(completion_window, self._settings.max_window_s)
        except ValueError as error:
            raise _invalid(str(error), "completion_window") from None
        _check_metadata(metadata)
        batch_id = f"batch_{uuid.uuid4().hex}"
        purpose = await self._catalog.pin(input_file_id, batch_id) if FILE_ID.fullmatch(input_file_id) else None
        if purpose is None:
            raise _invalid(f"No such File object: {input_file_id[:80]}", "input_file_id", "file_not_found")
        try:
            if purpose != "batch":
                raise _invalid(f"File {input_file_id} has purpose '{purpose}', not 'batch'.", "input_file_id")
            return await self._queue.create(
                batch_id,
                input_file_id=input_file_id,
                endpoint=endpoint,
                completion_window=completion_window,
                window_ms=window_s * 1000,
                metadata=None if metadata is None else dict(metadata),
            )
        except (ApiError, TooManyBatchesError) as error:
            await self._catalog.unpin(input_file_id, [batch_id])
            if isinstance(error, ApiError):
                raise
            raise ApiError(
                429,
                str(error),
                error_type="rate_limit_error",
                code="too_many_batches",
                retry_after_s=_RETRY_FULL_AFTER_S,
            ) from None

    @_answers_unavailable
    async def get_batch(self, batch_id: str) -> Batch:
        """The Batch object of an id."""
        batch = await self._queue.get(batch_id) if BATCH_ID.fullmatch(batch_id) else None
        if batch is None:
            raise _no_batch(batch_id)
        return batch

    @_answers_unavailable
    async def list_batches(self, after: str | None = None, limit: int = 20) -> BatchList:
        """A page of the batches, newest first, behind the batch `after`."""
        _check_limit(limit, _MAX_BATCHES_PAGE)
        page = await self._queue.page(after, limit)
        if page is None:
            raise _no_batch(after or "", "after")
        return page

    @_answers_unavailable
    async def cancel_batch(self, batch_id: str) -> Batch:
        """Cancels a batch; what is done so far will be in its output file."""
        try:
            batch = await self._queue.cancel(batch_id) if BATCH_ID.fullmatch(batch_id) else None
        except BatchEndedError as error:
            raise ApiError(409, str(error), param="batch_id", code="batch_not_cancellable") from None
        if batch is None:
            raise _no_batch(batch_id)
        return batch

    async def _discard_unrecorded(self, file_id: str) -> None:
        # A file that was recorded all the same (only its way to the disk is not known) stays: it can be listed.
        try:
            if await self._catalog.get(file_id) is None:
                await self._store.delete_file(file_id)
        except (RedisError, OSError) as error:
            _log.warning("content without a record may stay in the storage", file_id=file_id, reason=str(error))

    async def _is_over(self, batch_id: str, since_ms: int) -> bool:
        batch = await self._queue.get(batch_id)
        if batch is not None:
            return batch.status.ended
        now_s, _ = await self._redis.time()  # It may be about to be created.
        return bool(now_s - since_ms / 1000 > _CREATION_S)


def file_too_large(max_bytes: int) -> ApiError:
    """The answer to an upload that is too long."""
    return ApiError(413, f"The file is larger than {max_bytes} bytes, which is the limit.", param="file")


async def _resume(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in rest:
        yield chunk


def _check_limit(limit: int, most: int) -> None:
    if not 1 <= limit <= most:
        raise _invalid(f"'limit' must be between 1 and {most}.", "limit")


def _check_metadata(metadata: Mapping[str, str] | None) -> None:
    if metadata is None:
        return
    if len(metadata) > _MAX_METADATA:
        raise _invalid(f"'metadata' holds {len(metadata)} pairs; at most {_MAX_METADATA} are allowed.", "metadata")
    for key, value in metadata.items():
        if len(key) > _MAX_KEY:
            raise _invalid(f"A key of 'metadata' is longer than {_MAX_KEY} characters: '{key[:40]}...'.", "metadata")
        if not isinstance(value, str) or len(value) > _MAX_VALUE:
            raise _invalid(f"'metadata.{key}' must be a string of at most {_MAX_VALUE} characters.", "metadata")


def _invalid(message: str, param: str, code: str | None = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def _not_found(message: str, param: str) -> ApiError:
    return ApiError(404, message, param=param, code="not_found")


def _no_batch(batch_id: str, param: str = "batch_id") -> ApiError:
    return _not_found(f"No batch found with id '{batch_id[:80]}'.", param)


def _unavailable(message: str) -> ApiError:
    return ApiError(503, message, error_type="server_error", code="service_unavailable", retry_after_s=_RETRY_AFTER_S)
