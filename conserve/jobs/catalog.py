"""What is known of each file: the File objects, in Redis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from conserve.config import DEFAULT_TENANT
from conserve.jobs.barrier import DiskBarrier
from conserve.jobs.batch import FILE_PURPOSES, FileList, FileObject
from conserve.jobs.clock import read_server_ms, to_ms
from conserve.jobs.keys import Keys
from conserve.jobs.ledger import Ledger
from conserve.jobs.scripts import Scripts

_LONGEST_UPLOAD_MS = 86_400_000
_LONGEST_DELETION_MS = 60_000


class FileRecord(NamedTuple):
    """What decides whether a file is kept. `expires_at_ms` is Unix milliseconds; None: it does not expire."""

    expires_at_ms: int | None


class FileSize(NamedTuple):
    """Bytes of a file, and its lines; fewer than there are where they were not counted."""

    bytes: int
    lines: int


class FileCatalog:
    """File objects by id. A file that batches read is pinned by them and cannot be deleted.

    A file that has expired is not there for clients, from that moment on; `retention.FileRetention` then deletes it.
    The index of due files says when to look at a file again, and no more: what is to be done follows from its record.
    So it is written before anything that a crash could leave half done.
    """

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis: Any = redis  # As in `registry.BatchRegistry`.
        self._keys = Keys(namespace)
        self._scripts = Scripts(redis)
        self._barrier = DiskBarrier(redis, self._keys)
        self.ledger = Ledger(redis, self._keys)

    async def announce(self, file_id: str) -> None:
        """Says that content is about to be stored: if it is not recorded within a day, it is deleted."""
        await self.look_again(file_id, await read_server_ms(self._redis) + _LONGEST_UPLOAD_MS)

    async def put(
        self,
        file_id: str,
        filename: str,
        purpose: str,
        size_bytes: int,
        expires_after_s: int | None = None,
        *,
        tenant: str = DEFAULT_TENANT,
        lines: int = 0,
    ) -> FileObject:
        """Records a file whose content is stored; on disk when this returns. Repeating it changes nothing.

        What it has of the tenant's quotas is the caller's to take before.

        Raises:
            NotDurableError: the server did not confirm in time.
        """
        fields = {"filename": filename, "purpose": purpose, "bytes": str(size_bytes)}
        fields |= {"tenant": tenant, "lines": str(lines)}
        args: list[str | int] = [(expires_after_s or 0) * 1000, *(part for pair in fields.items() for part in pair)]
        created, expires = await self._scripts.run("put_file", [self._keys.file(file_id)], args)
        expires_at_ms = int(expires) or None
        indexes = [self._keys.files(tenant), self._keys.files(tenant, purpose)]
        await self._scripts.run("index_file", [self._keys.due_files, *indexes], [file_id, created, expires])
        await self._barrier.wait(file_id)
        times = {"created_at_ms": str(created)} | ({"expires_at_ms": str(expires_at_ms)} if expires_at_ms else {})
        return _to_file(file_id, fields | times)

    async def get(self, file_id: str) -> FileObject | None:
        """The File object, or None."""
        return next(iter(await self._read_visible([file_id])), None)

    async def page(
        self,
        after: str | None,
        limit: int,
        *,
        purpose: str | None = None,
        newest_first: bool = True,
        tenant: str = DEFAULT_TENANT,
    ) -> FileList | None:
        """A page of a tenant's files (of one purpose or of all) behind the file `after`; None when that is unknown."""
        index = self._keys.files(tenant, purpose)
        start = 0
        if after is not None:
            rank = await (self._redis.zrevrank if newest_first else self._redis.zrank)(index, after)
            if rank is None:
                return None
            start = int(rank) + 1
        found: list[FileObject] = []
        while len(found) <= limit:  # One more than asked for tells whether there are more; some may have expired.
            wanted = limit + 1 - len(found)
            ids = await self._redis.zrange(index, start, start + wanted - 1, desc=newest_first)
            found += await self._read_visible(ids)
            start += len(ids)
            if len(ids) < wanted:
                break
        data = found[:limit]
        return FileList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(found) > limit,
        )

    async def pin(self, file_id: str, batch_id: str, tenant: str = DEFAULT_TENANT) -> str | None:
        """Keeps a file from being deleted for the sake of a batch of the same tenant.

        Returns its purpose; None: the tenant has no such file.
        """
        keys = [self._keys.file(file_id), self._keys.file_users(file_id)]
        purpose = await self._scripts.run("pin_file", keys, [batch_id, tenant, DEFAULT_TENANT])
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
        """Forgets a file that no batch pins; False when one does.

        Its content is the caller's to delete, then `look_again(file_id, None)`; until that a crash is made up for.
        """
        # Once the record is gone, only the ledger knows whose it was; so that comes last.
        tenant = await self._redis.hget(self._keys.file(file_id), "tenant") or await self.ledger.tenant_of(file_id)
        due_ms = await read_server_ms(self._redis) + _LONGEST_DELETION_MS
        await self._redis.zadd(self._keys.due_files, {file_id: due_ms}, lt=True)
        keys = [self._keys.file(file_id), self._keys.file_users(file_id)]
        if int(await self._scripts.run("delete_file", keys)) < 0:
            return False
        for purpose in (None, *FILE_PURPOSES):
            await self._redis.zrem(self._keys.files(tenant or DEFAULT_TENANT, purpose), file_id)
        await self.ledger.drop(file_id)
        return True

    async def due(self, now_ms: int, most: int) -> list[str]:
        """Files to look at by now (server milliseconds), the longest due first."""
        return list(await self._redis.zrange(self._keys.due_files, "-inf", now_ms, byscore=True, offset=0, num=most))

    async def look_again(self, file_id: str, at_ms: int | None) -> None:
        """Says when a file is due (server milliseconds); None: never."""
        if at_ms is None:
            await self._redis.zrem(self._keys.due_files, file_id)
        else:
            await self._redis.zadd(self._keys.due_files, {file_id: at_ms})

    async def record(self, file_id: str) -> FileRecord | None:
        """What is recorded of a file, expired or not; None: nothing."""
        purpose, expires = await self._redis.hmget(self._keys.file(file_id), "purpose", "expires_at_ms")
        return None if purpose is None else FileRecord(None if expires is None else int(expires))

    async def size(self, file_id: str) -> FileSize:
        """Of a file that is there."""
        size, lines = await self._redis.hmget(self._keys.file(file_id), "bytes", "lines")
        return FileSize(int(size or 0), int(lines or 0))

    async def _read_visible(self, file_ids: Sequence[str]) -> list[FileObject]:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for file_id in file_ids:
                pipe.hgetall(self._keys.file(file_id))
            time, *found = await pipe.execute()
        now_ms = to_ms(time)
        return [
            _to_file(file_id, fields)
            for file_id, fields in zip(file_ids, found, strict=True)
            if fields and int(fields.get("expires_at_ms", now_ms + 1)) > now_ms
        ]


def _to_file(file_id: str, fields: dict[str, str]) -> FileObject:
    expires = fields.get("expires_at_ms")
    return FileObject.model_validate(
        {
            "id": file_id,
            "bytes": int(fields["bytes"]),
            "created_at": int(fields["created_at_ms"]) // 1000,
            "expires_at": None if expires is None else int(expires) // 1000,
            "filename": fields["filename"],
            "purpose": fields["purpose"],
            "tenant": fields.get("tenant", DEFAULT_TENANT),
        }
    )
