"""The Files API, as the HTTP, gRPC and CLI fronts call it."""

from __future__ import annotations

import copy
import functools
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from conserve.config import DEFAULT_TENANT, Settings
from conserve.jobs.answers import (
    answers_unavailable,
    check_limit,
    file_too_large,
    invalid,
    no_file,
    no_place,
    over_quota,
)
from conserve.jobs.batch import FILE_ID, FILE_PURPOSES, FileDeleted, FileList, FileObject
from conserve.jobs.catalog import FileCatalog
from conserve.jobs.errors import ApiError, FileTooLargeError, NoPlaceError, QuotaExceededError
from conserve.jobs.expiry import ExpiresAfter
from conserve.jobs.files import FileStore
from conserve.jobs.ledger import Holding
from conserve.jobs.line_count import LineCount
from conserve.jobs.retention import FileRetention
from conserve.jobs.tenants import TenantDirectory, find_tenants

_log = structlog.get_logger(__name__)

_MAX_FILENAME = 255
_RETRY_UPLOAD_AFTER_S = 5
MAX_FILES_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file and its bytes, to be streamed once."""

    file: FileObject
    chunks: AsyncIterator[bytes]


class FileService:
    """The files of one tenant. Every method raises `ApiError` for what a client did wrong and for outages.

    Attributes:
        tenants: Who may be whose client.
    """

    def __init__(
        self, redis: Redis, store: FileStore, settings: Settings, tenants: TenantDirectory | None = None
    ) -> None:
        self._redis = redis
        self._store = store
        self._settings = settings.jobs
        self._catalog = FileCatalog(redis, settings.jobs.namespace)
        self._retention = FileRetention(redis, store, settings)
        self.tenants = tenants or find_tenants(settings)
        self._uploads = self.tenants.uploads(settings.jobs.max_uploads)
        self._tenant = DEFAULT_TENANT

    def for_tenant(self, tenant: str) -> Self:
        """The same service as a tenant sees it: what others have is not there. At first it is the default one's."""
        service = copy.copy(self)
        service._tenant = tenant
        return service

    @property
    def max_file_bytes(self) -> int:
        """Longest file that `upload_file` takes, in bytes."""
        return self._settings.max_file_bytes

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """One of the uploads that may go on at once, for as long as the block: also while its form is taken in.

        Raises:
            ApiError: 429, there are as many as allowed.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self._uploads.take(self._tenant))
            except NoPlaceError as error:
                codes = ("too_many_uploads", "uploads_exceeded")
                raise no_place(error, "uploads", *codes, _RETRY_UPLOAD_AFTER_S) from None
            yield

    @answers_unavailable
    async def upload_file(
        self, filename: str, purpose: str, stream: AsyncIterable[bytes], expires_after: ExpiresAfter | None = None
    ) -> FileObject:
        """Stores an input file; it is on disk when this returns.

        Without `expires_after` it is kept for as long as the settings say.
        """
        if purpose != "batch":
            raise invalid(f"'{purpose[:64]}' is not a supported purpose: use 'batch'.", "purpose")
        file_id = f"file-{uuid.uuid4().hex}"
        await self._catalog.announce(file_id)  # Also: before megabytes are stored that could not be recorded.
        kept_s = expires_after.seconds if expires_after else self._settings.input_files_kept_s
        name = filename[-_MAX_FILENAME:] or "file.jsonl"
        count = LineCount()
        try:
            await self._hold(file_id, 0)
            size_bytes = await self._store.write_file(file_id, count.watch(stream), self._settings.max_file_bytes)
            await self._hold(file_id, size_bytes)
            record = functools.partial(self._catalog.put, tenant=self._tenant, lines=count.lines)
            return await record(file_id, name, purpose, size_bytes, kept_s)
        except BaseException as error:
            await self._discard_unrecorded(file_id)
            if isinstance(error, FileTooLargeError):
                raise file_too_large(self._settings.max_file_bytes) from None
            if isinstance(error, QuotaExceededError):
                raise over_quota(error, "file") from None
            raise

    @answers_unavailable
    async def get_file(self, file_id: str) -> FileObject:
        """The File object of an id."""
        file = await self._catalog.get(file_id) if FILE_ID.fullmatch(file_id) else None
        if file is None or file.tenant != self._tenant:
            raise no_file(file_id)
        return file

    @answers_unavailable
    async def list_files(
        self, purpose: str | None = None, after: str | None = None, limit: int = MAX_FILES_PAGE, order: str = "desc"
    ) -> FileList:
        """A page of the files behind the file `after`, by time (`order` is `asc` or `desc`)."""
        check_limit(limit, MAX_FILES_PAGE)
        if order not in ("asc", "desc"):
            raise invalid("'order' must be 'asc' or 'desc'.", "order")
        if purpose is not None and purpose not in FILE_PURPOSES:
            return FileList(data=[], first_id=None, last_id=None, has_more=False)  # Others have purposes of their own.
        page = await self._catalog.page(
            after, limit, purpose=purpose, newest_first=order == "desc", tenant=self._tenant
        )
        if page is None:
            raise no_file(after or "", "after")
        return page

    @answers_unavailable
    async def delete_file(self, file_id: str) -> FileDeleted:
        """Deletes a file that no active batch reads."""
        await self.get_file(file_id)
        if not await self._retention.delete(file_id):
            raise ApiError(
                409, f"File {file_id} is used by a batch that has not ended.", param="file_id", code="in_use"
            )
        return FileDeleted(id=file_id)

    @answers_unavailable
    async def file_content(self, file_id: str) -> FileContent:
        """The content of a file, as a stream; the first piece is read before this returns."""
        file = await self.get_file(file_id)
        chunks = self._store.stream_file(file_id)
        first = await anext(chunks, b"")
        return FileContent(file, _resume(first, chunks))

    async def _hold(self, file_id: str, size_bytes: int) -> None:
        holding, limits = Holding(files=1, bytes=size_bytes), self.tenants.limits(self._tenant)
        await self._catalog.ledger.hold(file_id, self._tenant, holding, limits)

    async def _discard_unrecorded(self, file_id: str) -> None:
        # A file that was recorded all the same (only its way to the disk is not known) stays: it can be listed.
        try:
            if await self._catalog.record(file_id) is None:
                await self._store.delete_file(file_id)
                await self._catalog.ledger.drop(file_id)
        except (RedisError, OSError) as error:
            _log.warning("content without a record stays for a day", file_id=file_id, reason=str(error))


async def _resume(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in rest:
        yield chunk
