"""Claims requests for a replica, so that none is lost whose claim was not answered."""

from __future__ import annotations

import asyncio
import secrets

from conserve.config import JobsSettings
from conserve.jobs.batch import Batch
from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.queue import JobQueue


class Claimer:
    """Claims for one replica, one batch at a time. Errors of Redis come through.

    Args:
        queue: What it claims from.
        settings: How long a lease is, and how many batches are remembered.
        model: The served model; of other batches nothing is claimed.
        epoch: Names this run of the replica.
    """

    def __init__(self, queue: JobQueue, settings: JobsSettings, model: str, epoch: str) -> None:
        self._queue = queue
        self._lease_ms = settings.lease_ms
        self._max_batches = settings.max_active_batches
        self._model = model
        self._epoch = epoch
        self._batches: dict[str, Batch] = {}
        self._claiming: asyncio.Future[list[ClaimedRequest]] | None = None
        self._tokens: dict[str, str] = {}

    async def find_batch(self, batch_id: str) -> Batch | None:
        """The batch, from memory where it was looked up before; None: unknown, or for another model."""
        batch = self._batches.get(batch_id)
        if batch is None:
            batch = await self._queue.get(batch_id)
            if batch is None or (batch.model or self._model) != self._model:
                return None
            if len(self._batches) >= self._max_batches:
                self._batches.clear()
            self._batches[batch_id] = batch
        return batch

    def forget(self, batch_id: str) -> None:
        """Looks a batch up anew the next time."""
        self._batches.pop(batch_id, None)

    async def claim(self, batch_id: str, most: int) -> list[ClaimedRequest]:
        """Leases up to `most` requests of a batch."""
        # Unanswered or cancelled, it may have happened all the same: asked again with its token it has the same leases.
        token = self._tokens.setdefault(batch_id, secrets.token_hex(4))
        self._claiming = asyncio.ensure_future(self._queue.claim(batch_id, most, self._lease_ms, self._epoch, token))
        claimed = await asyncio.shield(self._claiming)
        self._claiming = None
        del self._tokens[batch_id]
        return claimed

    async def release_unknown(self, timeout_s: float) -> None:
        """Gives back what claims have leased whose answer never came: for nothing more, asked again they tell.

        Args:
            timeout_s: Seconds that a claim under way is waited for.
        """
        if self._claiming is not None:
            await asyncio.wait([self._claiming], timeout=timeout_s)
        for batch_id, token in list(self._tokens.items()):  # A claim that is answered now takes its own out.
            claimed = await self._queue.claim(batch_id, 0, self._lease_ms, self._epoch, token)
            await self._queue.release(batch_id, {one.line: one.fence for one in claimed})
