"""Leads every batch from `validating` to its end: validates, reaps, expires, finalizes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NoReturn

import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from conserve.config import Settings
from conserve.jobs.admission import WINDOW_TOO_SHORT, AdmissionDesk, Assessment
from conserve.jobs.assembly import assemble, delete_leftovers
from conserve.jobs.batch import ActiveBatch, BatchError, BatchStatus, RequestCounts
from conserve.jobs.catalog import FileCatalog
from conserve.jobs.errors import ValidatorReplacedError
from conserve.jobs.files import FileStore
from conserve.jobs.flex_cleanup import FlexCleanup
from conserve.jobs.flex_requests import FlexRequests
from conserve.jobs.holdings import BatchHoldings
from conserve.jobs.ledger import Holding
from conserve.jobs.queue import JobQueue
from conserve.jobs.slots import FairSlots
from conserve.jobs.validation import InputValidator, RequestRange

_log = structlog.get_logger(__name__)

_SLOW_STEPS_AT_ONCE, _OF_ONE_TENANT = 6, 4
_FLEX_STEPS_AT_ONCE = 4  # Short ones, and somebody may wait for the room.
_SLOW_STEP_LIMIT_S = 1800.0  # A step that hangs is given up and tried again; nothing else would free its slot.
_CHUNK_REQUESTS = 500
_CHUNK_BYTES = 4 << 20
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 60.0
_CREATION_MS = 60_000  # An index entry without a batch is left alone for so long: it may be on its way.


@dataclass(slots=True)
class _Trouble:
    failures: int = 0
    not_before_s: float = 0.0


class BatchKeeper:
    """Does what batches need done, for all of them, again and again.

    Each step is atomic or repeatable: after a crash anywhere the next round goes on from the old or the new state. More
    than one keeper at a time does no harm. Leases are left alone for one lease period after the keeper starts and after
    Redis was away or restarted, so that replicas can renew what they still work on, and fronts the flex requests that
    they wait for.
    """

    def __init__(
        self,
        redis: Redis,
        store: FileStore,
        settings: Settings,
        models: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._store = store
        self._settings = settings.jobs
        self._models = models
        self._clock = clock
        self._queue = JobQueue(redis, settings)
        self._catalog = FileCatalog(redis, settings.jobs.namespace)
        self._holdings = BatchHoldings(self._queue.ledger)
        self._flex = FlexCleanup(FlexRequests(redis, settings), self._queue, self._catalog, store)
        self._desk = AdmissionDesk(redis, self._queue, settings, models)
        self._validator_token = secrets.token_hex(16)
        self._server_run_id: str | None = None
        self._reap_from_s = 0.0
        self._hold_leases()
        self._slow: dict[str, asyncio.Task[None]] = {}
        self._slots = FairSlots(_SLOW_STEPS_AT_ONCE, _OF_ONE_TENANT)
        self._flex_slots = FairSlots(_FLEX_STEPS_AT_ONCE, _FLEX_STEPS_AT_ONCE)
        self._troubles: dict[str, _Trouble] = {}

    async def run_once(self) -> None:
        """Brings every active batch one step on, and waits for the steps that take time.

        Raises:
            redis.exceptions.RedisError: Redis is away. A failure with one batch is logged and tried again later.
        """
        await self._round()
        if self._slow:
            await asyncio.wait(list(self._slow.values()))

    async def run(self, period_s: float) -> NoReturn:
        """Goes round for ever, until cancelled. Validating and finalizing do not hold up the reaping of others."""
        pause_s = period_s
        try:
            while True:
                try:
                    await self._round()
                    pause_s = period_s
                except RedisError as error:
                    pause_s = min(max(2 * pause_s, _BACKOFF_S), _LONGEST_BACKOFF_S / 6)
                    _log.warning("keeper cannot use redis", reason=str(error), next_try_s=pause_s)
                await asyncio.sleep(pause_s)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stops the steps that are under way; they are done again by the next keeper."""
        tasks = list(self._slow.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _round(self) -> None:
        try:
            await self._notice_restart()
            now_s, micro_s = await self._redis.time()
            now_ms = now_s * 1000 + micro_s // 1000
            admitted = await self._queue.active_ids()
            batches = await self._queue.active_summaries(list(admitted))
            for batch_id in admitted.keys() - {batch.batch_id for batch in batches}:
                if now_ms - admitted[batch_id] > _CREATION_MS:
                    await self._queue.forget(batch_id)
            await self._holdings.follow(batches)
            if self._clock() >= self._reap_from_s:
                await self._flex.let_go_unattended(batches)
            for batch in batches:
                await self._advance(batch, now_ms)
            for batch_id in self._troubles.keys() - admitted.keys():
                del self._troubles[batch_id]
        except (RedisConnectionError, RedisTimeoutError):
            self._hold_leases()
            raise

    async def _notice_restart(self) -> None:
        run_id = str((await self._redis.info("server")).get("run_id"))
        if self._server_run_id not in (None, run_id):
            _log.info("redis was restarted: leases are left alone for one period")
            self._hold_leases()
        self._server_run_id = run_id

    def _hold_leases(self) -> None:
        self._reap_from_s = self._clock() + self._settings.lease_ms / 1000

    async def _advance(self, batch: ActiveBatch, now_ms: int) -> None:
        trouble = self._troubles.get(batch.batch_id)
        if batch.batch_id in self._slow or (trouble and self._clock() < trouble.not_before_s):
            return
        if batch.flex is not None and (batch.outcome is not None or batch.status.ended):
            if self._flex.is_due(batch, now_ms):
                self._start(batch, self._flex.delete)
        elif batch.status.ended:
            self._start(batch, self._retire)
        elif batch.outcome is not None:
            self._start(batch, self._finalize)
        elif batch.total == 0:
            self._start(batch, self._validate)
        else:
            try:
                await self._tend(batch, now_ms)
                self._troubles.pop(batch.batch_id, None)
            except (RedisConnectionError, RedisTimeoutError):
                raise
            except Exception:  # noqa: BLE001 - as in `_run_step`.
                self._put_off(batch)

    async def _tend(self, batch: ActiveBatch, now_ms: int) -> None:
        if batch.status is BatchStatus.CANCELLING:
            await self._queue.freeze_cancelled(batch.batch_id)
        elif now_ms >= batch.expires_at_ms:
            await self._queue.expire(batch.batch_id)
        elif batch.leased and self._clock() >= self._reap_from_s:
            taken = await self._queue.reap(batch.batch_id)
            if taken:
                _log.warning("took away leases that ran out", batch_id=batch.batch_id, requests=taken)

    def _start(self, batch: ActiveBatch, step: Callable[[ActiveBatch], Awaitable[None]]) -> None:
        self._slow[batch.batch_id] = asyncio.create_task(self._run_step(batch, step))

    async def _run_step(self, batch: ActiveBatch, step: Callable[[ActiveBatch], Awaitable[None]]) -> None:
        try:
            slots = self._slots if batch.flex is None else self._flex_slots
            async with slots.take(batch.tenant), asyncio.timeout(_SLOW_STEP_LIMIT_S):
                await step(batch)
            self._troubles.pop(batch.batch_id, None)
        except ValidatorReplacedError as error:
            _log.info("validation left to another process", batch_id=batch.batch_id, reason=str(error))
        except Exception as error:  # noqa: BLE001 - one batch's failure, whatever it is, must not stop the others.
            if isinstance(error, RedisConnectionError | RedisTimeoutError):
                self._hold_leases()
            self._put_off(batch)
        finally:
            del self._slow[batch.batch_id]

    def _put_off(self, batch: ActiveBatch) -> None:
        """Logs the exception being handled, and leaves the batch alone for a while that doubles with each failure."""
        trouble = self._troubles.setdefault(batch.batch_id, _Trouble())
        pause_s = min(_BACKOFF_S * 2**trouble.failures, _LONGEST_BACKOFF_S)
        trouble.failures = min(trouble.failures + 1, 30)
        trouble.not_before_s = self._clock() + pause_s
        _log.exception("batch does not get on", batch_id=batch.batch_id, status=batch.status, next_try_s=pause_s)

    async def _validate(self, batch: ActiveBatch) -> None:
        token = self._validator_token
        if not await self._queue.begin_enqueue(batch.batch_id, token):
            return
        limits = self._settings
        validator = InputValidator(batch.endpoint, self._models, limits.max_batch_requests, limits.max_line_bytes)
        try:
            await self._enqueue(batch, token, validator)
        except OSError as error:
            now_s, _ = await self._redis.time()
            if now_s * 1000 < batch.expires_at_ms:
                raise
            message = f"The input file could not be read within the completion window: {error.strerror or error}"
            validator.problems.append(BatchError(code="input_file_unreadable", message=message, param="input_file_id"))
        assessment = None if validator.problems else await self._assess(batch, token, validator)
        if validator.problems:
            await self._queue.fail(batch.batch_id, token, validator.problems)
        else:
            fields = assessment.to_fields() if assessment is not None else None
            prefix = validator.prefix.digest
            await self._queue.start(batch.batch_id, token, validator.total, validator.model or "", prefix, fields)
        _log.info(
            "validated batch", batch_id=batch.batch_id, requests=validator.total, problems=len(validator.problems)
        )

    async def _assess(self, batch: ActiveBatch, token: str, validator: InputValidator) -> Assessment:
        """Looks whether the batch fits its window; if not, and that is to be refused, it is a problem of it."""
        await self._queue.enqueue(batch.batch_id, token, validator.total, [])  # Prolongs the token.
        assessment = await self._desk.assess_validated(batch, validator.model or "", validator.size)
        if assessment.is_too_short and self._desk.refuses and batch.status is BatchStatus.VALIDATING:
            validator.problems.append(
                BatchError(
                    code=WINDOW_TOO_SHORT,
                    message=assessment.message,
                    param="completion_window",
                    earliest_completion_window=assessment.earliest_window,
                )
            )
        return assessment

    async def _enqueue(self, batch: ActiveBatch, token: str, validator: InputValidator) -> None:
        chunks = self._store.storage.chunks(self._store.file_path(batch.input_file_id))
        ranges = validator.check(chunks)
        queued = 0
        while part := await asyncio.to_thread(_take, ranges):
            # Once something is wrong nothing will run; an empty part still prolongs the token.
            queued = await self._queue.enqueue(batch.batch_id, token, queued, [] if validator.problems else part)

    async def _finalize(self, batch: ActiveBatch) -> None:
        results = await self._queue.results(batch.batch_id)
        manifest = await asyncio.to_thread(assemble, self._store, batch, results, self._settings.max_line_bytes)
        for file, name in ((manifest.output, "output"), (manifest.error, "error")):
            if file is not None:
                file_name = f"{batch.batch_id}_{name}.jsonl"
                kept_s = batch.output_expires_after_s
                await self._catalog.ledger.hold(file.id, batch.tenant, Holding(files=1, bytes=file.bytes))
                await self._catalog.put(
                    file.id, file_name, "batch_output", file.bytes, kept_s, tenant=batch.tenant, lines=file.lines
                )
        output, error = manifest.output, manifest.error
        counts = RequestCounts(
            total=batch.total, completed=output.lines if output else 0, failed=error.lines if error else 0
        )
        await self._queue.finish(
            batch.batch_id,
            output_file_id=output.id if output else None,
            error_file_id=error.id if error else None,
            counts=counts,
        )
        await self._desk.record(batch)
        _log.info("batch ended", batch_id=batch.batch_id, status=batch.outcome, **counts.model_dump())

    async def _retire(self, batch: ActiveBatch) -> None:
        # Last of all, and after the end of the batch is on the disk of Redis: nothing needs the segments any more.
        await self._store.delete_segments(batch.batch_id)
        await asyncio.to_thread(delete_leftovers, self._store, batch.batch_id)
        await self._catalog.unpin(batch.input_file_id, [batch.batch_id])
        await self._queue.retire(batch.batch_id)


def _take(ranges: Iterator[RequestRange]) -> list[RequestRange]:
    taken: list[RequestRange] = []
    size = 0
    for part in ranges:
        taken.append(part)
        size += part.length
        if len(taken) >= _CHUNK_REQUESTS or size >= _CHUNK_BYTES:
            break
    return taken
