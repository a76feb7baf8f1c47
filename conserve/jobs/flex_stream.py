"""What a streamed flex request has produced, on its way from a replica to the front: a short-lived Redis stream each.

It is a convenience, not the truth: an entry may be missing, or come twice after a retry. The committed result is what
counts, and what the front has not sent by then it sends from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from conserve.jobs.batch import ClaimedRequest
from conserve.jobs.keys import Keys

MOST_ENTRIES: Final = 4_096
"""Of one stream; older ones are dropped. An entry holds all chunks of one request since the last writing."""
KEPT_MS: Final = 600_000
MOST_UNWRITTEN: Final = 20_000
"""Chunks that are kept while Redis is away; with more of them the oldest are dropped."""


class ChunkWriter:
    """Gathers the chunks of all requests of a replica and writes them in one round trip."""

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis: Any = redis  # As in `registry.BatchRegistry`.
        self._keys = Keys(namespace)
        self._gathered: dict[tuple[str, str], list[Mapping[str, Any]]] = {}

    def add(self, claimed: ClaimedRequest, chunk: Mapping[str, Any]) -> None:
        """Takes a chunk of an answer, as the HTTP API would send it."""
        self._gathered.setdefault((claimed.batch_id, claimed.fence), []).append(chunk)

    async def flush(self) -> None:
        """Writes what was gathered.

        Raises:
            redis.exceptions.RedisError: Redis is away. What was gathered is kept, as far as there is room.
        """
        if not self._gathered:
            return
        gathered, self._gathered = self._gathered, {}
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for (batch_id, fence), chunks in gathered.items():
                    key = self._keys.batch(batch_id).stream
                    entry = {"fence": fence, "chunks": json.dumps(chunks, separators=(",", ":"))}
                    pipe.xadd(key, entry, maxlen=MOST_ENTRIES, approximate=True)
                    pipe.pexpire(key, KEPT_MS)
                await pipe.execute()
        except (RedisError, OSError):
            room = MOST_UNWRITTEN
            for key, chunks in gathered.items():
                kept = chunks[:room]
                self._gathered[key] = [*kept, *self._gathered.get(key, [])]
                room -= len(kept)
            raise


def read_entry(fields: Mapping[str, str]) -> tuple[str, list[dict[str, Any]]] | None:
    """The fence of the claim that made them and the chunks of an entry; None: it says that the request is done."""
    if "done" in fields:
        return None
    return fields["fence"], json.loads(fields["chunks"])
