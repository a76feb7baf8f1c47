"""The batches as wholes: created, listed, cancelled, ended. Their requests are in `queue.JobQueue`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from conserve.config import DEFAULT_TENANT, Settings
from conserve.jobs.barrier import DiskBarrier
from conserve.jobs.batch import (
    ActiveBatch,
    Batch,
    BatchError,
    BatchErrors,
    BatchList,
    BatchStatus,
    RequestCounts,
)
from conserve.jobs.batch_fields import LIVE_STATUSES, to_batch
from conserve.jobs.errors import (
    BatchEndedError,
    NotDurableError,
    TooManyBatchesError,
    ValidatorReplacedError,
)
from conserve.jobs.keys import RESULTS_KEPT_MS, Keys
from conserve.jobs.ledger import NO_HOLDING, NO_LIMITS, Holding, Ledger, Limits
from conserve.jobs.scripts import Scripts
from conserve.jobs.summaries import SummaryReader

_log = structlog.get_logger(__name__)


class BatchRegistry:
    """States of batches in Redis. Every change is one atomic script; errors of Redis come through."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis: Any = redis  # Typed for every way of decoding; `connect` makes clients that decode to str.
        self._settings = settings.jobs
        self._keys = Keys(settings.jobs.namespace)
        self._scripts = Scripts(redis)
        self._barrier = DiskBarrier(redis, self._keys)
        self._summaries = SummaryReader(self._scripts, self._keys)
        self.ledger = Ledger(redis, self._keys)

    async def create(
        self,
        batch_id: str,
        *,
        input_file_id: str,
        endpoint: str,
        completion_window: str,
        window_ms: int,
        metadata: dict[str, str] | None,
        priority: int = 0,
        output_expires_after_s: int | None = None,
        tenant: str = DEFAULT_TENANT,
        holding: Holding = NO_HOLDING,
        limits: Limits = NO_LIMITS,
        assessment: Mapping[str, str | int] | None = None,
        traceparent: str | None = None,
    ) -> Batch:
        """Records a new batch, to be validated. It is on disk when this returns.

        What it has of the tenant's quotas is `holding`; its keeper sets that anew while the batch is worked on, and
        gives back what is left in the end. `assessment` are the fields that `admission.Assessment` has; `traceparent`
        is as in `Batch`.

        Raises:
            TooManyBatchesError: `max_active_batches` are active.
            QuotaExceededError: the tenant would have more than `limits`.
            NotDurableError: the server did not confirm in time, or refused. The batch is then cancelled if that can be
                done, as after a RedisError: the client is not told of it and will try again.
        """
        # Into the index first: an entry without a batch is cleaned up, a batch without an entry would never be found.
        index, most = self._keys.batches(tenant), self._settings.max_active_batches
        held = holding._replace(batches=1)
        if not await self.ledger.admit(batch_id, tenant, held, limits, index=index, most=most):
            raise TooManyBatchesError(f"{self._settings.max_active_batches} batches are active, which is the limit.")
        args: list[str | int] = [window_ms, "", "input_file_id", input_file_id, "endpoint", endpoint]
        args += ["completion_window", completion_window, "priority", priority, "tenant", tenant]
        if holding.requests:
            args += ["tokens_guessed", round(holding.tokens / holding.requests)]
        if metadata is not None:
            args += ["metadata", json.dumps(metadata)]
        if output_expires_after_s is not None:
            args += ["output_expires_after_s", output_expires_after_s]
        if traceparent is not None:
            args += ["traceparent", traceparent]
        args += _pair(assessment)
        await self._scripts.run("create", self._keys.batch(batch_id), args)
        try:
            await asyncio.gather(self._barrier.wait("index"), self._barrier.wait(batch_id))
        except (NotDurableError, RedisError):
            try:
                await self._scripts.run("cancel", self._keys.batch(batch_id))
            except RedisError as error:
                _log.warning("a batch that was not acknowledged may run", batch_id=batch_id, reason=str(error))
            raise
        batch = await self.get(batch_id)
        if batch is None:
            raise RuntimeError(f"Batch {batch_id} vanished while it was created.")
        return batch

    async def get(self, batch_id: str) -> Batch | None:
        """The Batch object, or None. `input_file_id`, `endpoint` and, once in progress, `model` never change."""
        fields = await self._redis.hgetall(self._keys.batch(batch_id).batch)
        return to_batch(batch_id, fields) if fields else None

    async def page(self, after: str | None = None, limit: int = 20, tenant: str = DEFAULT_TENANT) -> BatchList | None:
        """A page of a tenant's batches, newest first, behind the batch `after`; None when that is unknown."""
        index = self._keys.batches(tenant)
        start = 0
        if after is not None:
            rank = await self._redis.zrevrank(index, after)
            if rank is None:
                return None
            start = int(rank) + 1
        ids = await self._redis.zrange(index, start, start + limit, desc=True)
        async with self._redis.pipeline(transaction=False) as pipe:
            for batch_id in ids[:limit]:
                pipe.hgetall(self._keys.batch(batch_id).batch)
            found = await pipe.execute()
        data = [to_batch(batch_id, fields) for batch_id, fields in zip(ids, found, strict=False) if fields]
        return BatchList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(ids) > limit,
        )

    async def leader(self) -> str | None:
        """The cluster whose controller is at work, see `leadership.py`; None: none is."""
        found = await self._redis.get(self._keys.controller)
        return None if found is None else str(found)

    async def active_ids(self) -> dict[str, int]:
        """Batches that still need the keeper, oldest first -> when they were created, Unix milliseconds."""
        words = (await self._scripts.run("active", [self._keys.active_batches])).split()
        return {batch_id: int(float(score)) for batch_id, score in zip(words[::2], words[1::2], strict=True)}

    async def active_summaries(self, batch_ids: Sequence[str] | None = None) -> list[ActiveBatch]:
        """What the controller needs to know of the active batches, oldest first; three round trips however many."""
        if batch_ids is not None:
            return await self._summaries.read(batch_ids)
        ids = list(await self.active_ids())
        self._summaries.retain(ids)
        return await self._summaries.read(ids)

    async def cancel(self, batch_id: str) -> Batch | None:
        """Cancels a batch that is being validated or in progress; again is no error. None when it is unknown.

        Raises:
            BatchEndedError: it has ended otherwise, or is finalizing.
        """
        return await self._change("cancel", batch_id, (BatchStatus.CANCELLING, BatchStatus.CANCELLED))

    async def pause(self, batch_id: str) -> Batch | None:
        """Lets no further request of a batch be claimed; what runs goes on. Again is no error. None: it is unknown.

        Raises:
            BatchEndedError: it is neither being validated nor in progress.
        """
        return await self._change("pause", batch_id, LIVE_STATUSES)

    async def resume(self, batch_id: str) -> Batch | None:
        """Undoes `pause`, also of a batch that is not paused. None when it is unknown.

        Raises:
            BatchEndedError: it is neither being validated nor in progress.
        """
        return await self._change("resume", batch_id, LIVE_STATUSES)

    async def prioritise(self, batch_id: str, priority: int) -> Batch | None:
        """Gives a batch another priority. None when it is unknown.

        Raises:
            BatchEndedError: it is neither being validated nor in progress.
        """
        return await self._change("prioritise", batch_id, LIVE_STATUSES, [priority])

    async def _change(
        self, action: str, batch_id: str, expected: Collection[str], args: Sequence[str | int] = ()
    ) -> Batch | None:
        status = await self._scripts.run(action, self._keys.batch(batch_id), args)
        if status is None:
            return None
        if status not in expected:
            raise BatchEndedError(batch_id, status, action)
        return await self.get(batch_id)

    async def delete(self, batch_id: str) -> None:
        """Forgets all that is known of a batch; to be retired then."""
        await self._redis.unlink(*self._keys.batch(batch_id))

    async def start(
        self,
        batch_id: str,
        token: str,
        total: int,
        model: str,
        prefix: str = "",
        assessment: Mapping[str, str | int] | None = None,
    ) -> None:
        """Makes the queued requests of a validated batch claimable. Raises ValidatorReplacedError.

        `assessment` as in `create`.
        """
        args: list[str | int] = [token, total, model, prefix, *_pair(assessment)]
        done = await self._scripts.run("start", self._keys.batch(batch_id), args)
        _check_validator(batch_id, int(done))

    async def fail(self, batch_id: str, token: str, errors: Sequence[BatchError]) -> None:
        """Ends a batch whose input file is not valid. Raises ValidatorReplacedError."""
        text = BatchErrors(data=list(errors)).model_dump_json()
        _check_validator(batch_id, int(await self._scripts.run("fail", self._keys.batch(batch_id), [token, text])))

    async def delay(self, batch_id: str, reason: str | None) -> None:
        """Says why a batch does not get on at the moment; None: it does."""
        await self._scripts.run("delay", self._keys.batch(batch_id), [reason or ""])

    async def predict(self, ends_ms: Mapping[str, int | None]) -> None:
        """Says when batches in progress will be done, Unix milliseconds; None: that is not known. One round trip."""
        calls = [(self._keys.batch(one), ["" if end_ms is None else end_ms]) for one, end_ms in ends_ms.items()]
        await self._scripts.run_all("predict", calls)

    async def expire(self, batch_id: str) -> bool:
        """Freezes a batch in progress whose completion window is over; True when this call did it."""
        return bool(await self._scripts.run("expire", self._keys.batch(batch_id)))

    async def freeze_cancelled(self, batch_id: str) -> bool:
        """Freezes a cancelled batch without leases, or one lease period after it was cancelled; True when frozen."""
        lease_ms = self._settings.lease_ms
        return bool(await self._scripts.run("freeze_cancelled", self._keys.batch(batch_id), [lease_ms]))

    async def finish(
        self, batch_id: str, *, output_file_id: str | None, error_file_id: str | None, counts: RequestCounts
    ) -> None:
        """Ends a frozen batch with the files assembled for it; on disk when this returns. Again is no error.

        Raises:
            NotDurableError: the server did not confirm in time.
        """
        args: list[str | int] = [
            output_file_id or "",
            error_file_id or "",
            counts.completed,
            counts.failed,
            RESULTS_KEPT_MS,
        ]
        await self._scripts.run("finish", self._keys.batch(batch_id), args)
        await self._barrier.wait(batch_id)

    async def retire(self, batch_id: str) -> None:
        """Takes a batch that has ended from the active ones, and gives back what it had of its tenant's quotas."""
        await self.ledger.retire_ended(batch_id, self._keys.ended_batches)

    async def forget_ended(self, batch_id: str) -> None:
        """Forgets all that is known of a batch that was retired."""
        tenant = await self._redis.hget(self._keys.batch(batch_id).batch, "tenant")
        await self._redis.zrem(self._keys.batches(tenant or DEFAULT_TENANT), batch_id)
        await self.delete(batch_id)
        await self._redis.zrem(self._keys.ended_batches, batch_id)

    async def forget(self, batch_id: str) -> None:
        """Takes a batch that never came to be from the indexes."""
        tenant = await self.ledger.tenant_of(batch_id)
        await self.ledger.retire(batch_id, self._keys.batches(tenant or DEFAULT_TENANT))


def _pair(fields: Mapping[str, str | int] | None) -> list[str | int]:
    return [part for pair in (fields or {}).items() for part in pair]


def _check_validator(batch_id: str, answer: int) -> None:
    if answer == -1:
        raise ValidatorReplacedError(f"Batch {batch_id} is validated by another process, or not any more.")
    if answer < 0:
        raise ValidatorReplacedError(f"The queue of batch {batch_id} is not as this validator left it.")
