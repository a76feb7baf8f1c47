"""Forgets batches that ended long ago, with all that is left of them but their result files."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.files import FileStore
from conserve.jobs.keys import Keys
from conserve.jobs.registry import BatchRegistry

_log = structlog.get_logger(__name__)

_LOOKED_AT_ONCE = 100


class BatchRetention:
    """Goes through the index of ended batches, from those that ended first.

    The index entry goes last, so that after a crash the batch is found again; every step may be repeated.
    """

    def __init__(self, redis: Redis, store: FileStore, settings: Settings) -> None:
        self._redis: Any = redis  # As in `registry.BatchRegistry`.
        self._store = store
        self._kept_s = settings.jobs.batches_kept_s
        self._index = Keys(settings.jobs.namespace).ended_batches
        self._batches = BatchRegistry(redis, settings)

    async def sweep(self, now_ms: int) -> int:
        """Forgets batches whose time is over by now (server milliseconds), a limited number; returns how many.

        Raises:
            redis.exceptions.RedisError: Redis is away.
            OSError: the storage of the files is away.
        """
        if self._kept_s is None:
            return 0
        until_ms = now_ms - self._kept_s * 1000
        ids = await self._redis.zrange(self._index, "-inf", until_ms, byscore=True, offset=0, num=_LOOKED_AT_ONCE)
        for batch_id in ids:
            await asyncio.to_thread(self._store.storage.delete, self._store.manifest_path(batch_id))
            await self._batches.forget_ended(batch_id)
        if ids:
            _log.info("forgot batches that ended long ago", batches=len(ids))
        return len(ids)
