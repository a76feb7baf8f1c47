"""Deletes files: when clients say so, when they expire, and what broken uploads have left behind."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from conserve.config import Settings
from conserve.jobs.catalog import FileCatalog
from conserve.jobs.clock import read_server_ms
from conserve.jobs.files import FileStore
from conserve.jobs.registry import BatchRegistry

_log = structlog.get_logger(__name__)

_LOOKED_AT_ONCE = 200
_LOOK_AGAIN_MS = 60_000
_CREATION_MS = 60_000  # A batch that pins a file may be about to be created.


class FileRetention:
    """Files go in three steps, record, content, due date, so that a crash leaves something that is found again."""

    def __init__(self, redis: Redis, store: FileStore, settings: Settings) -> None:
        self._redis = redis
        self._store = store
        self._catalog = FileCatalog(redis, settings.jobs.namespace)
        self._batches = BatchRegistry(redis, settings)

    async def delete(self, file_id: str) -> bool:
        """Deletes a file; False, and nothing is done, while a batch that has not ended reads it.

        Raises:
            OSError: the storage is away. The file is gone for clients, its content goes later.
        """
        now_ms = await read_server_ms(self._redis)
        users = await self._catalog.users(file_id)
        over = [batch_id for batch_id, since_ms in users.items() if await self._is_over(batch_id, now_ms - since_ms)]
        await self._catalog.unpin(file_id, over)
        if not await self._catalog.delete(file_id):
            return False
        await self._store.delete_file(file_id)
        await self._catalog.look_again(file_id, None)
        return True

    async def sweep(self) -> int:
        """Looks at the files that are due, a limited number; returns how many it has deleted.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        now_ms = await read_server_ms(self._redis)
        deleted = 0
        for file_id in await self._catalog.due(now_ms, _LOOKED_AT_ONCE):
            try:
                deleted += await self._look_at(file_id, now_ms)
            except OSError as error:
                _log.warning("content of a file not deleted yet", file_id=file_id, reason=str(error))
                await self._catalog.look_again(file_id, now_ms + _LOOK_AGAIN_MS)
        return deleted

    async def run(self, period_s: float) -> NoReturn:
        """Sweeps for ever, until cancelled. An outage of Redis is waited out."""
        while True:
            try:
                if deleted := await self.sweep():
                    _log.info("deleted files that have expired", files=deleted)
            except RedisError as error:
                _log.warning("expired files not deleted yet", reason=str(error))
            await asyncio.sleep(period_s)

    async def _look_at(self, file_id: str, now_ms: int) -> bool:
        record = await self._catalog.record(file_id)
        # Without a record it is an upload or a deletion that broke off.
        if record is not None and (record.expires_at_ms is None or record.expires_at_ms > now_ms):
            await self._catalog.look_again(file_id, record.expires_at_ms)
            return False
        if await self.delete(file_id):
            return True
        await self._catalog.look_again(file_id, now_ms + _LOOK_AGAIN_MS)
        return False

    async def _is_over(self, batch_id: str, pinned_ms: int) -> bool:
        batch = await self._batches.get(batch_id)
        return batch.status.ended if batch is not None else pinned_ms > _CREATION_MS
