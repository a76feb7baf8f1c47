"""Deletes flex requests that are over: what is stored of one is of no use once its client has the answer."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from conserve.jobs.batch import ActiveBatch
from conserve.jobs.catalog import FileCatalog
from conserve.jobs.files import FileStore
from conserve.jobs.flex_requests import FlexRequests
from conserve.jobs.queue import JobQueue

_log = structlog.get_logger(__name__)

_GRACE_MS = 60_000
"""A request that nobody has let go of so long after its end is forgotten by its front."""
_LINGER_MS = 1_000
"""For so long the controller can see what a request has used in the end."""


class FlexCleanup:
    """What the keeper does with flex requests in place of assembling files.

    Each step may be repeated: after a crash the request is still among the active ones, or its content among the files
    that are due.
    """

    def __init__(self, requests: FlexRequests, queue: JobQueue, catalog: FileCatalog, store: FileStore) -> None:
        self._requests = requests
        self._queue = queue
        self._catalog = catalog
        self._store = store

    async def let_go_unattended(self, batches: Sequence[ActiveBatch]) -> None:
        """Lets go of requests whose front is gone: it has not said for a lease period that it waits for them.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        unmarked = [one.batch_id for one in batches if one.flex is not None and one.let_go_at_ms is None]
        if lost := await self._requests.let_go_unattended(unmarked):
            _log.warning("let go of flex requests whose front is gone", requests=len(lost))

    def is_due(self, batch: ActiveBatch, now_ms: int) -> bool:
        """Whether a request that is over can be deleted: its client has the answer, or is gone."""
        if batch.let_go_at_ms is not None:
            return now_ms > batch.let_go_at_ms + _LINGER_MS
        return now_ms > batch.expires_at_ms + _GRACE_MS

    async def delete(self, batch: ActiveBatch) -> None:
        """Deletes a request and all that is stored for it."""
        await self._store.delete_segments(batch.batch_id)
        await self._store.delete_file(batch.input_file_id)
        await self._catalog.look_again(batch.input_file_id, None)
        await self._queue.delete(batch.batch_id)
        await self._queue.ledger.retire(batch.batch_id)
        _log.debug("flex request deleted", batch_id=batch.batch_id)
