"""What is known of each file: the File objects, in Redis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis

from conserve.jobs.barrier import DiskBarrier
from conserve.jobs.batch import FILE_PURPOSES, FileList, FileObject
from conserve.jobs.keys import Keys
from conserve.jobs.scripts import Scripts


class FileCatalog:
    """File objects by id. A file that batches read is pinned by them and cannot be deleted."""

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis: Any = redis  # As in `registry.BatchRegistry`.
        self._keys = Keys(namespace)
        self._scripts = Scripts(redis)
        self._barrier = DiskBarrier(redis, self._keys)

    async def put(self, file_id: str, filename: str, purpose: str, size_bytes: int) -> FileObject:
        """Records a file whose content is stored; on disk when this returns. Repeating it changes nothing.

        Raises:
            NotDurableError: the server did not confirm in time.
        """
        fields = {"filename": filename, "purpose": purpose, "bytes": str(size_bytes)}
        args = [part for pair in fields.items() for part in pair]
        created_at_ms = int(await self._scripts.run("put_file", [self._keys.file(file_id)], args))
        for index in (self._keys.files(), self._keys.files(purpose)):
            await self._redis.zadd(index, {file_id: created_at_ms})
        await self._barrier.wait(file_id)
        return _to_file(file_id, {**fields, "created_at_ms": str(created_at_ms)})

    async def get(self, file_id: str) -> FileObject | None:
        """The File object, or None."""
        fields = await self._redis.hgetall(self._keys.file(file_id))
        return _to_file(file_id, fields) if fields else None

    async def page(
        self, after: str | None, limit: int, *, purpose: str | None = None, newest_first: bool = True
    ) -> FileList | None:
        """A page of files (of one purpose or of all) behind the file `after`; None when that is unknown."""
        index = self._keys.files(purpose)
        start = 0
        if after is not None:
            rank = await (self._redis.zrevrank if newest_first else self._redis.zrank)(index, after)
            if rank is None:
                return None
            start = int(rank) + 1
        ids = await self._redis.zrange(index, start, start + limit, desc=newest_first)
        async with self._redis.pipeline(transaction=False) as pipe:
            for file_id in ids[:limit]:
                pipe.hgetall(self._keys.file(file_id))
            found = await pipe.execute()
        data = [_to_file(file_id, fields) for file_id, fields in zip(ids, found, strict=False) if fields]
        return FileList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(ids) > limit,
        )

    async def pin(self, file_id: str, batch_id: str) -> str | None:
        """Keeps a file from being deleted for the sake of a batch. Returns its purpose; None: there is no such file."""
        keys = [self._keys.file(file_id), self._keys.file_users(file_id)]
        purpose = await self._scripts.run("pin_file", keys, [batch_id])
        return None if purpose is None else str(purpose)

    async def unpin(self, file_id: str, batch_ids: Iterable[str]) -> None:
        """Undoes `pin` for batches that are over."""
        if ids := list(batch_ids):
            await self._redis.zrem(self._keys.file_users(file_id), *ids)

    async def users(self, file_id: str) -> dict[str, int]:
        """Batches that pin a file -> when they did, Unix milliseconds."""
        pairs = await self._redis.zrange(self._keys.file_users(file_id), 0, -1, withscores=True)
        return {batch_id: int(score) for batch_id, score in pairs}

    async def delete(self, file_id: str) -> bool:
        """Forgets a file that no batch pins; False when one does. Its content is the caller's to delete."""
        keys = [self._keys.file(file_id), self._keys.file_users(file_id)]
        if int(await self._scripts.run("delete_file", keys)) < 0:
            return False
        for purpose in (None, *FILE_PURPOSES):
            await self._redis.zrem(self._keys.files(purpose), file_id)
        return True


def _to_file(file_id: str, fields: dict[str, str]) -> FileObject:
    return FileObject.model_validate(
        {
            "id": file_id,
            "bytes": int(fields["bytes"]),
            "created_at": int(fields["created_at_ms"]) // 1000,
            "filename": fields["filename"],
            "purpose": fields["purpose"],
        }
    )
