"""What the HTTP, gRPC and CLI fronts call: files and batches, with the answers of the OpenAI API."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing

from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.admission import AdmissionDesk, Assessment
from conserve.jobs.answers import (
    answers_unavailable,
    check_limit,
    invalid,
    no_batch,
    no_place,
    over_quota,
    overloaded,
    window_too_short,
)
from conserve.jobs.batch import (
    BATCH_ID,
    ENDPOINTS_BY_TASK,
    FILE_ID,
    HIGHEST_PRIORITY,
    LOWEST_PRIORITY,
    Batch,
    BatchList,
)
from conserve.jobs.errors import ApiError, BatchEndedError, NoPlaceError, QuotaExceededError, TooManyBatchesError
from conserve.jobs.expiry import ExpiresAfter
from conserve.jobs.file_service import FileService
from conserve.jobs.files import FileStore
from conserve.jobs.ledger import Holding
from conserve.jobs.queue import JobQueue
from conserve.jobs.result_feed import ResultFeed
from conserve.jobs.tenants import TenantDirectory
from conserve.jobs.window import parse_window
from conserve.policy.request_size import guess_request_tokens

_RETRY_FULL_AFTER_S = 60
_RETRY_STREAM_AFTER_S = 10
_MAX_METADATA, _MAX_KEY, _MAX_VALUE = 16, 64, 512
MAX_BATCHES_PAGE = 100


class JobService(FileService):
    """The Files and Batch APIs, as one tenant sees them.

    Every method raises `ApiError` for what a client did wrong and for outages.
    """

    def __init__(
        self,
        redis: Redis,
        store: FileStore,
        settings: Settings,
        models: Collection[str],
        tenants: TenantDirectory | None = None,
    ) -> None:
        super().__init__(redis, store, settings, tenants)
        self._queue = JobQueue(redis, settings)
        self._feed = ResultFeed(self._queue, store)
        self._streams = self.tenants.result_streams(settings.jobs.max_result_streams)
        self.models = frozenset(models)
        self._desk = AdmissionDesk(redis, self._queue, settings, self.models)
        self.endpoints = ENDPOINTS_BY_TASK[settings.model.task]

    @answers_unavailable
    async def create_batch(
        self,
        input_file_id: str,
        endpoint: str,
        completion_window: str,
        metadata: Mapping[str, str] | None = None,
        *,
        output_expires_after: ExpiresAfter | None = None,
        priority: int = 0,
        traceparent: str | None = None,
    ) -> Batch:
        """Accepts a batch; it is on disk when this returns, and validated afterwards.

        One that does not fit its window on the capacity seen lately is refused, as `jobs.admission` says; the error has
        `earliest_completion_window`. `traceparent` is kept with it, see `Batch`.
        """
        if endpoint not in self.endpoints:
            served = ", ".join(self.endpoints)
            raise invalid(f"'{endpoint[:80]}' is not supported by the served model. Use one of: {served}.", "endpoint")
        try:
            window_s = parse_window(completion_window, self._settings.max_window_s)
        except ValueError as error:
            raise invalid(str(error), "completion_window") from None
        _check_metadata(metadata)
        _check_priority(priority)
        batch_id = f"batch_{uuid.uuid4().hex}"
        is_id = FILE_ID.fullmatch(input_file_id) is not None
        purpose = await self._catalog.pin(input_file_id, batch_id, self._tenant) if is_id else None
        if purpose is None:
            raise invalid(f"No such File object: {input_file_id[:80]}", "input_file_id", "file_not_found")
        try:
            if purpose != "batch":
                raise invalid(f"File {input_file_id} has purpose '{purpose}', not 'batch'.", "input_file_id")
            assessment = await self._assess(batch_id, input_file_id, endpoint, window_s)
            return await self._queue.create(
                batch_id,
                input_file_id=input_file_id,
                endpoint=endpoint,
                completion_window=completion_window,
                window_ms=window_s * 1000,
                metadata=None if metadata is None else dict(metadata),
                priority=priority,
                output_expires_after_s=output_expires_after.seconds if output_expires_after else None,
                tenant=self._tenant,
                holding=await self._measure(input_file_id),
                limits=self.tenants.limits(self._tenant),
                assessment=assessment.to_fields(),
                traceparent=traceparent,
            )
        except (ApiError, TooManyBatchesError, QuotaExceededError) as error:
            await self._catalog.unpin(input_file_id, [batch_id])
            if isinstance(error, ApiError):
                raise
            if isinstance(error, QuotaExceededError):
                raise over_quota(error, "input_file_id") from None
            raise overloaded(str(error), "too_many_batches", _RETRY_FULL_AFTER_S) from None

    async def _assess(self, batch_id: str, input_file_id: str, endpoint: str, window_s: int) -> Assessment:
        file = await self._catalog.get(input_file_id)
        assessment = await self._desk.assess_new(batch_id, endpoint, file.bytes if file else 0, window_s)
        if assessment.is_too_short and self._desk.refuses:
            raise window_too_short(assessment.message, assessment.earliest_window)
        return assessment

    @answers_unavailable
    async def get_batch(self, batch_id: str) -> Batch:
        """The Batch object of an id."""
        batch = await self._queue.get(batch_id) if BATCH_ID.fullmatch(batch_id) else None
        if batch is None or batch.tenant != self._tenant:
            raise no_batch(batch_id)
        return batch

    @answers_unavailable
    async def list_batches(self, after: str | None = None, limit: int = 20) -> BatchList:
        """A page of the batches, newest first, behind the batch `after`."""
        check_limit(limit, MAX_BATCHES_PAGE)
        page = await self._queue.page(after, limit, self._tenant)
        if page is None:
            raise no_batch(after or "", "after")
        return page

    @answers_unavailable
    async def cancel_batch(self, batch_id: str) -> Batch:
        """Cancels a batch; what is done so far will be in its output file. Again is no error."""
        return await self._change(batch_id, self._queue.cancel, "batch_not_cancellable")

    @answers_unavailable
    async def pause_batch(self, batch_id: str) -> Batch:
        """Begins no further request of a batch; its completion window goes on. Again is no error."""
        return await self._change(batch_id, self._queue.pause, "batch_not_pausable")

    @answers_unavailable
    async def resume_batch(self, batch_id: str) -> Batch:
        """Lets a paused batch go on. Again is no error."""
        return await self._change(batch_id, self._queue.resume, "batch_not_resumable")

    @answers_unavailable
    async def prioritise_batch(self, batch_id: str, priority: int) -> Batch:
        """Gives a batch that has not ended another priority."""
        _check_priority(priority)

        async def prioritise(one: str) -> Batch | None:
            return await self._queue.prioritise(one, priority)

        return await self._change(batch_id, prioritise, "batch_not_changeable")

    @answers_unavailable
    async def stream_results(
        self, batch_id: str, after: int = 0, *, follow: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """The result lines of a batch as they are committed; see `ResultFeed.stream`. Opened before this returns."""
        if after < 0:
            raise invalid("'after' must be the number of lines that you have, 0 or more.", "after")
        await self.get_batch(batch_id)
        lines = self._count(self._feed.stream(batch_id, after, follow=follow))
        try:
            await anext(lines)
        except NoPlaceError as error:
            codes = ("too_many_streams", "result_streams_exceeded")
            raise no_place(error, "streams of results", *codes, _RETRY_STREAM_AFTER_S) from None
        return lines

    async def _count(self, lines: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        with self._streams.take(self._tenant):
            async with aclosing(lines):
                async for chunk in lines:
                    yield chunk

    async def _measure(self, input_file_id: str) -> Holding:
        """What a batch has of the quotas, from what is known of its file before its lines are read."""
        size = await self._catalog.size(input_file_id)
        return Holding(size.lines, size.lines * guess_request_tokens(size.lines, size.bytes))

    async def _change(self, batch_id: str, change: Callable[[str], Awaitable[Batch | None]], code: str) -> Batch:
        await self.get_batch(batch_id)  # It is the tenant's.
        try:
            batch = await change(batch_id)
        except BatchEndedError as error:
            raise ApiError(409, str(error), param="batch_id", code=code) from None
        if batch is None:
            raise no_batch(batch_id)
        return batch


def _check_priority(priority: int) -> None:
    if not LOWEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
        raise invalid(f"'priority' must be between {LOWEST_PRIORITY} and {HIGHEST_PRIORITY}.", "priority")


def _check_metadata(metadata: Mapping[str, str] | None) -> None:
    if metadata is None:
        return
    if len(metadata) > _MAX_METADATA:
        raise invalid(f"'metadata' holds {len(metadata)} pairs; at most {_MAX_METADATA} are allowed.", "metadata")
    for key, value in metadata.items():
        if len(key) > _MAX_KEY:
            raise invalid(f"A key of 'metadata' is longer than {_MAX_KEY} characters: '{key[:40]}...'.", "metadata")
        if not isinstance(value, str) or len(value) > _MAX_VALUE:
            raise invalid(f"'metadata.{key}' must be a string of at most {_MAX_VALUE} characters.", "metadata")
