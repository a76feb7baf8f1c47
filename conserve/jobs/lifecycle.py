"""Leads every batch from `validating` to its end: validates, reaps, expires, finalizes."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from typing import NoReturn

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from conserve.config import Settings
from conserve.jobs.admission import WINDOW_TOO_SHORT, AdmissionDesk, Assessment
from conserve.jobs.assembly import assemble, delete_leftovers
from conserve.jobs.batch import ActiveBatch, BatchError, BatchStatus, RequestCounts
from conserve.jobs.batch_retention import BatchRetention
from conserve.jobs.catalog import FileCatalog
from conserve.jobs.clock import read_server_ms
from conserve.jobs.errors import ValidatorReplacedError
from conserve.jobs.files import FileStore
from conserve.jobs.flex_cleanup import FlexCleanup
from conserve.jobs.flex_requests import FlexRequests
from conserve.jobs.holdings import BatchHoldings
from conserve.jobs.ledger import Holding
from conserve.jobs.outages import is_out_of_memory, is_outage
from conserve.jobs.queue import JobQueue
from conserve.jobs.server_watch import ServerWatch
from conserve.jobs.slots import FairSlots
from conserve.jobs.troubles import Troubles, explain
from conserve.jobs.validation import InputValidator, make_rules, take_part
from conserve.telemetry.job_metrics import BATCHES_ENDED, LEASES_EXPIRED
from conserve.telemetry.metric import NO_RECORDER, Recorder

_log = structlog.get_logger(__name__)

_SLOW_STEPS_AT_ONCE, _OF_ONE_TENANT = 6, 4
_FLEX_STEPS_AT_ONCE = 4  # Short ones, and somebody may wait for the room.
_SLOW_STEP_LIMIT_S = 1800.0  # A step that hangs is given up and tried again; nothing else would free its slot.
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 10.0
_SWEEP, _SWEEP_PERIOD_S = "sweep", 30.0
_CREATION_MS = 60_000  # An index entry without a batch is left alone for so long: it may be on its way.


class BatchKeeper:
    """Does what batches need done, for all of them, again and again.

    Each step is atomic or repeatable: after a crash anywhere the next round goes on from the old or the new state. More
    than one keeper at a time does no harm. Leases are left alone for one lease period after the keeper starts and after
    Redis was away or restarted, so that replicas can renew what they still work on, and fronts the flex requests that
    they wait for. So they are after its clock has jumped forward, and windows, too: it may jump back.
    """

    def __init__(
        self,
        redis: Redis,
        store: FileStore,
        settings: Settings,
        models: Collection[str],
        clock: Callable[[], float] = time.monotonic,
        recorder: Recorder = NO_RECORDER,
    ) -> None:
        self._redis = redis
        self._recorder = recorder
        recorder.add(LEASES_EXPIRED, 0)
        for status in BatchStatus:
            if status.ended:
                recorder.add(BATCHES_ENDED, 0, status.value)
        self._store = store
        self._settings = settings.jobs
        self._rules = make_rules(settings.requests)
        self._models = models
        self._clock = clock
        self._queue = JobQueue(redis, settings)
        self._catalog = FileCatalog(redis, settings.jobs.namespace)
        self._holdings = BatchHoldings(self._queue.ledger)
        self._flex = FlexCleanup(FlexRequests(redis, settings), self._queue, self._catalog, store)
        self._retention = BatchRetention(redis, store, settings)
        self._sweep_from_s = 0.0
        self._desk = AdmissionDesk(redis, self._queue, settings, models)
        self._validator_token = secrets.token_hex(16)
        self._watch = ServerWatch(redis, clock, settings.jobs.lease_ms)
        self._reap_from_s = self._trust_clock_from_s = 0.0
        self._hold_leases()
        self._slow: dict[str, asyncio.Task[None]] = {}
        self._slots = FairSlots(_SLOW_STEPS_AT_ONCE, _OF_ONE_TENANT)
        self._flex_slots = FairSlots(_FLEX_STEPS_AT_ONCE, _FLEX_STEPS_AT_ONCE)
        self._troubles = Troubles(clock)

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
                    pause_s = min(max(2 * pause_s, _BACKOFF_S), _LONGEST_BACKOFF_S)
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
            now_ms = await self._look_at_server()
            admitted = await self._queue.active_ids()
            batches = await self._queue.active_summaries(list(admitted))
            for batch_id in admitted.keys() - {batch.batch_id for batch in batches}:
                if now_ms - admitted[batch_id] > _CREATION_MS and self._trusts_clock:
                    await self._queue.forget(batch_id)
            await self._holdings.follow(batches)
            if self._clock() >= self._reap_from_s:
                await self._flex.let_go_unattended(batches)
            for batch in batches:
                await self._advance(batch, now_ms)
            self._troubles.keep_only(admitted.keys())
            if self._trusts_clock and self._clock() >= self._sweep_from_s and _SWEEP not in self._slow:
                self._sweep_from_s = self._clock() + _SWEEP_PERIOD_S
                self._slow[_SWEEP] = asyncio.create_task(self._sweep(now_ms))
        except RedisError as error:
            if _stops_renewals(error):
                self._hold_leases()
            raise

    async def _look_at_server(self) -> int:
        view = await self._watch.look()
        if view.restarted:
            self._holdings.reset()
        if view.restarted or view.jumped:
            self._hold_leases()
        if view.jumped:
            self._trust_clock_from_s = self._reap_from_s
        return view.now_ms

    def _hold_leases(self) -> None:
        self._reap_from_s = self._clock() + self._settings.lease_ms / 1000

    @property
    def _trusts_clock(self) -> bool:
        return self._clock() >= self._trust_clock_from_s

    async def _advance(self, batch: ActiveBatch, now_ms: int) -> None:
        if batch.batch_id in self._slow or self._troubles.holds_up(batch):
            return
        if batch.flex is not None and (batch.outcome is not None or batch.status.ended):
            if self._flex.is_due(batch, now_ms) and self._trusts_clock:
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
                await self._got_on(batch)
            except Exception as error:
                if _stops_renewals(error):
                    raise
                await self._put_off(batch, error)

    async def _tend(self, batch: ActiveBatch, now_ms: int) -> None:
        if batch.status is BatchStatus.CANCELLING:
            await self._queue.freeze_cancelled(batch.batch_id)
        elif now_ms >= batch.expires_at_ms and self._trusts_clock:
            await self._queue.expire(batch.batch_id)
        elif batch.leased and self._clock() >= self._reap_from_s:
            taken = await self._queue.reap(batch.batch_id)
            if taken:
                self._recorder.add(LEASES_EXPIRED, taken)
                _log.warning("took away leases that ran out", batch_id=batch.batch_id, requests=taken)

    async def _sweep(self, now_ms: int) -> None:
        try:
            async with self._slots.take(_SWEEP), asyncio.timeout(_SLOW_STEP_LIMIT_S):
                await self._retention.sweep(now_ms)
        except (RedisError, OSError) as error:
            _log.warning("ended batches are not forgotten yet", reason=str(error))
        finally:
            del self._slow[_SWEEP]

    def _start(self, batch: ActiveBatch, step: Callable[[ActiveBatch], Awaitable[None]]) -> None:
        self._slow[batch.batch_id] = asyncio.create_task(self._run_step(batch, step))

    async def _run_step(self, batch: ActiveBatch, step: Callable[[ActiveBatch], Awaitable[None]]) -> None:
        try:
            slots = self._slots if batch.flex is None else self._flex_slots
            async with slots.take(batch.tenant), asyncio.timeout(_SLOW_STEP_LIMIT_S):
                await step(batch)
            await self._got_on(batch)
        except ValidatorReplacedError as error:
            _log.info("validation left to another process", batch_id=batch.batch_id, reason=str(error))
        except Exception as error:  # noqa: BLE001 - one batch's failure, whatever it is, must not stop the others.
            if _stops_renewals(error):
                self._hold_leases()
            await self._put_off(batch, error)
        finally:
            del self._slow[batch.batch_id]

    async def _got_on(self, batch: ActiveBatch) -> None:
        self._troubles.clear(batch.batch_id)
        if batch.delayed:
            await self._queue.delay(batch.batch_id, None)

    async def _put_off(self, batch: ActiveBatch, error: Exception) -> None:
        """Logs an exception, says in the batch what it was, and leaves it alone for a while."""
        pause_s = self._troubles.add(batch)
        _log.error(
            "batch does not get on", batch_id=batch.batch_id, status=batch.status, next_try_s=pause_s, exc_info=error
        )
        try:
            await self._queue.delay(batch.batch_id, explain(error))
        except (RedisError, OSError) as outage:
            _log.warning("why a batch does not get on cannot be said", batch_id=batch.batch_id, reason=str(outage))

    async def _validate(self, batch: ActiveBatch) -> None:
        token = self._validator_token
        if not await self._queue.begin_enqueue(batch.batch_id, token):
            return
        limits = self._settings
        validator = InputValidator(
            batch.endpoint, self._models, limits.max_batch_requests, limits.max_line_bytes, self._rules
        )
        try:
            await self._enqueue(batch, token, validator)
        except OSError as error:
            if not await self._is_over(batch):
                raise
            message = f"The input file could not be read before the batch was over. {explain(error)}"
            validator.problems.append(BatchError(code="input_file_unreadable", message=message, param="input_file_id"))
        assessment = None if validator.problems else await self._assess(batch, token, validator)
        if validator.problems:
            await self._queue.fail(batch.batch_id, token, validator.problems)
            if batch.flex is None:
                self._recorder.add(BATCHES_ENDED, 1, BatchStatus.FAILED.value)
        else:
            fields = assessment.to_fields() if assessment is not None else None
            prefix = validator.prefix.digest
            await self._queue.start(batch.batch_id, token, validator.total, validator.model or "", prefix, fields)
        _log.info(
            "validated batch", batch_id=batch.batch_id, requests=validator.total, problems=len(validator.problems)
        )

    async def _is_over(self, batch: ActiveBatch) -> bool:
        """Whether it is too late to wait: its window is over, or it was cancelled."""
        found = await self._queue.get(batch.batch_id)
        if found is not None and found.status is BatchStatus.CANCELLING:
            return True
        return self._trusts_clock and await read_server_ms(self._redis) >= batch.expires_at_ms

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
        while part := await asyncio.to_thread(take_part, ranges):
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
        if batch.flex is None and batch.outcome is not None:
            self._recorder.add(BATCHES_ENDED, 1, batch.outcome.value)
        _log.info("batch ended", batch_id=batch.batch_id, status=batch.outcome, **counts.model_dump())

    async def _retire(self, batch: ActiveBatch) -> None:
        # Last of all, and after the end of the batch is on the disk of Redis: nothing needs the segments any more.
        await self._store.delete_segments(batch.batch_id)
        await asyncio.to_thread(delete_leftovers, self._store, batch.batch_id)
        await self._catalog.unpin(batch.input_file_id, [batch.batch_id])
        await self._queue.retire(batch.batch_id)


def _stops_renewals(error: Exception) -> bool:
    """True for an error of Redis that replicas which renew their leases meet, too."""
    return is_outage(error) and not is_out_of_memory(error)
