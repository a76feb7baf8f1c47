"""Flex requests: batches of one line that an HTTP request waits for.

They go the way of all offline work, with its priority in the engine, and through no handle of the serving layer.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.answers import answers_unavailable, over_quota, overloaded
from conserve.jobs.batch import ENDPOINTS_BY_TASK, BatchStatus, FlexKind
from conserve.jobs.catalog import FileCatalog
from conserve.jobs.chunk_merge import ChunkMerge, DivergedError
from conserve.jobs.claims import StoredResult
from conserve.jobs.errors import ApiError, QuotaExceededError, TooManyWaitingError
from conserve.jobs.files import FileStore
from conserve.jobs.flex_feed import FlexFeed, Subscription
from conserve.jobs.flex_requests import FlexLine, FlexRequests
from conserve.jobs.flex_stream import Numbered, read_entry
from conserve.jobs.flex_waiters import FlexWaiters
from conserve.jobs.input_size import MOST_TOKENS
from conserve.jobs.queue import JobQueue
from conserve.jobs.segments import SegmentReader
from conserve.jobs.tenants import TenantDirectory, find_tenants
from conserve.jobs.validation import InputValidator, make_rules
from conserve.policy.request_size import EXPECTED_OUTPUT_TOKENS, guess_request_tokens

TIER: Final = "flex"
RETRY_AFTER_S: Final = 30
_RETRY_LOST_AFTER_S: Final = 1
LOOK_S: Final = 2.0
"""The state of a request is looked at so often, beside what its stream says."""
_CUSTOM_ID: Final = "flex"
_OWN_FIELDS: Final = frozenset({"stream", "stream_options", "service_tier"})


@dataclass(frozen=True, slots=True)
class FlexJob:
    """A flex request on its way. `until_s` is when it is given up, on this process's monotonic clock."""

    batch_id: str
    until_s: float


class FlexService:
    """Makes flex requests and waits for them. Every method raises `ApiError` for what goes wrong.

    Args:
        redis, store: Where they are kept.
        settings: ConServe's settings.
        models: Names of the served models.
        tenants: Who may be whose client; by default as the settings alone say.

    Attributes:
        tenants: Who may be whose client.
    """

    def __init__(
        self,
        redis: Redis,
        store: FileStore,
        settings: Settings,
        models: Collection[str],
        tenants: TenantDirectory | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._models = models
        self._endpoints = ENDPOINTS_BY_TASK[settings.model.task]
        self._queue = JobQueue(redis, settings)
        self._catalog = FileCatalog(redis, settings.jobs.namespace)
        self._requests = FlexRequests(redis, settings)
        self._feed = FlexFeed(redis, settings.jobs.namespace)
        self._waiters = FlexWaiters(self._requests, settings.jobs.lease_ms)
        self.tenants = tenants or find_tenants(settings)

    async def run(self) -> None:
        """Hears of the requests that are waited for, and says that they are, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feed.run())
            group.create_task(self._waiters.run())

    async def answer(self, tenant: str, endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer to a request; it is let go when the caller is cancelled.

        Raises:
            ApiError: as the model has refused it, or 408, 429, 503.
        """
        async with self._wait(tenant, endpoint, body, FlexKind.WHOLE) as (job, subscription):
            while await self._next(job, subscription) is not None:
                pass
            return await self._result(job) | {"service_tier": TIER}

    async def stream(self, tenant: str, endpoint: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks of the answer to a request as they come; it is let go when this is closed.

        Raises:
            ApiError: as `answer`; before the first chunk unless another attempt at it goes another way.
        """
        options = body.get("stream_options")
        with_usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
        merge = ChunkMerge(TIER, with_usage=with_usage)
        async with self._wait(tenant, endpoint, body, FlexKind.STREAMED) as (job, subscription):
            try:
                while (entry := await self._next(job, subscription)) is not None:
                    fence, chunks = entry
                    for number, chunk in chunks:
                        if (merged := merge.add(fence, number, chunk)) is not None:
                            yield merged
                for merged in merge.finish(await self._result(job)):
                    yield merged
            except DivergedError as error:
                raise ApiError(
                    500, f"The stream broke off: {error}. Try again.", error_type="server_error", code="stream_broken"
                ) from error

    @asynccontextmanager
    async def _wait(
        self, tenant: str, endpoint: str, body: Mapping[str, Any], kind: FlexKind
    ) -> AsyncGenerator[tuple[FlexJob, Subscription], None]:
        job = FlexJob(f"batch_{uuid.uuid4().hex}", time.monotonic() + self._settings.flex.wait_s)
        self._waiters.enter(job.batch_id, job.until_s)
        try:
            await self._submit(job.batch_id, tenant, endpoint, body, kind)
            with self._feed.subscribe(job.batch_id) as subscription:
                yield job, subscription
        finally:
            self._waiters.leave(job.batch_id)

    @answers_unavailable
    async def _submit(self, batch_id: str, tenant: str, endpoint: str, body: Mapping[str, Any], kind: FlexKind) -> None:
        """Accepts a request. Whatever this raises, there may be one; unless it is refused, or nothing was begun."""
        harvest, waiting = self._settings.harvest, self._settings.flex.max_waiting
        try:
            if not harvest.enabled or harvest.max_window == 0 or waiting == 0:
                raise overloaded("No capacity is harvested here at the moment.", "resource_unavailable", RETRY_AFTER_S)
            line, found = self._check(endpoint, body)
        except ApiError:
            self._waiters.forget(batch_id)
            raise
        file_id = f"file-{uuid.uuid4().hex}"
        # In no list of files; if this breaks off, it is deleted as an upload that was never recorded.
        await self._catalog.announce(file_id)
        await self._store.write_file(file_id, _once(line), len(line))
        try:
            await self._requests.create(
                batch_id,
                kind,
                FlexLine(file_id, len(line), endpoint, found.model or "", found.prefix.digest),
                tenant=tenant,
                tokens=guess_tokens(body, len(line)),
                limits=self.tenants.limits(tenant),
            )
        except (TooManyWaitingError, QuotaExceededError) as error:
            self._waiters.forget(batch_id)
            await self._store.delete_file(file_id)
            await self._catalog.look_again(file_id, None)
            if isinstance(error, QuotaExceededError):
                raise over_quota(error, "service_tier") from None
            raise overloaded(str(error), "resource_unavailable", RETRY_AFTER_S) from None

    def _check(self, endpoint: str, body: Mapping[str, Any]) -> tuple[bytes, InputValidator]:
        """The line of a request, and what was found in it. Raises ApiError where it could not be one of a batch."""
        if endpoint not in self._endpoints:
            raise ApiError(400, f"'{endpoint}' is not supported by the served model.", param="service_tier")
        plain = {name: value for name, value in body.items() if name not in _OWN_FIELDS}
        entry = {"custom_id": _CUSTOM_ID, "method": "POST", "url": endpoint, "body": plain}
        line = json.dumps(entry, separators=(",", ":")).encode("ascii")
        settings = self._settings
        rules = make_rules(settings.requests)
        validator = InputValidator(endpoint, self._models, 1, settings.jobs.max_line_bytes, rules)
        for _ in validator.check([line]):
            pass
        if validator.problems:
            problem = validator.problems[0]
            status = 404 if problem.code == "model_not_found" else 400
            param = problem.param.removeprefix("body.") if problem.param else None
            raise ApiError(status, problem.message, param=param, code=problem.code)
        return line, validator

    @answers_unavailable
    async def _next(self, job: FlexJob, subscription: Subscription) -> tuple[str, list[Numbered]] | None:
        """Further chunks with the fence of their claim; None once the request is done."""
        while (left_s := job.until_s - time.monotonic()) > 0:
            entry = await subscription.next(min(LOOK_S, left_s))
            if entry is not None:
                return read_entry(entry)
            batch = await self._queue.get(job.batch_id)
            if batch is None or batch.status not in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
                return None
        raise _timed_out(self._settings.flex.wait_s)

    @answers_unavailable
    async def _result(self, job: FlexJob) -> dict[str, Any]:
        """The body of the answer. Raises ApiError where it is an error, or there is none."""
        result = (await self._queue.results_of(job.batch_id, [1])).get(1)
        if result is None:
            batch = await self._queue.get(job.batch_id)
            if batch is not None and batch.errors is not None and batch.errors.data:
                problem = batch.errors.data[0]
                raise ApiError(400, problem.message, param=problem.param, code=problem.code)
            if batch is None or batch.status is BatchStatus.CANCELLING:
                raise _lost()
            raise _timed_out(self._settings.flex.wait_s)
        if result.segment is None:
            raise ApiError(500, result.message, error_type="server_error", code=result.code)
        line = json.loads(await asyncio.to_thread(self._read, job.batch_id, result))
        if line["error"] is not None:
            raise ApiError(500, line["error"]["message"], error_type="server_error", code=line["error"]["code"])
        status, answer = int(line["response"]["status_code"]), dict(line["response"]["body"])
        if status != 200:
            error = answer.get("error") or {}
            code = error.get("code")
            raise ApiError(
                status,
                str(error.get("message") or "The model has refused the request."),
                param=error.get("param"),
                code=code if isinstance(code, str) else None,
            )
        return answer

    def _read(self, batch_id: str, result: StoredResult) -> bytes:
        with SegmentReader(self._store, batch_id) as segments:
            return segments.read(result.segment or "", result.offset, result.length)


def guess_tokens(body: Mapping[str, Any], length_bytes: int) -> int:
    """What a request takes, from its length and, if it says so, the most that it may produce, `n` times."""
    named = (body.get("max_completion_tokens"), body.get("max_tokens"))
    most = next((one for one in named if isinstance(one, int) and one > 0), EXPECTED_OUTPUT_TOKENS)
    count = body.get("n")
    count = count if isinstance(count, int) and count > 1 else 1
    return guess_request_tokens(1, length_bytes) - EXPECTED_OUTPUT_TOKENS + min(most * count, MOST_TOKENS)


async def _once(content: bytes) -> AsyncGenerator[bytes, None]:
    yield content


def _lost() -> ApiError:
    return ApiError(
        503,
        "The request was lost on its way, or given up as its front was not heard of. Try again.",
        error_type="server_error",
        code="service_unavailable",
        retry_after_s=_RETRY_LOST_AFTER_S,
    )


def _timed_out(wait_s: int) -> ApiError:
    return ApiError(
        408,
        f"The request was not done within {wait_s} s on harvested capacity. Try again later, or without 'flex'.",
        error_type="server_error",
        code="flex_timeout",
    )
