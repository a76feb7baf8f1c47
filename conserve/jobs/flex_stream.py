"""What a streamed flex request has produced, on its way from a replica to the front: a short-lived Redis stream each.

It is a convenience, not the truth: an entry may be missing, or come twice after a retry. The committed result is what
counts, and what the front has not sent by then it sends from there.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.keys import BatchKeys, Keys
from conserve.jobs.scripts import Scripts

MOST_ENTRIES: Final = 4_096
"""Of one stream; older ones are dropped. An entry holds all chunks of one request since the last writing."""
KEPT_MS: Final = 600_000
MOST_UNWRITTEN: Final = 20_000
"""Chunks that are kept while Redis is away; of a request that loses one, no later one is sent."""

Numbered = tuple[int, Mapping[str, Any]]
"""A chunk with its number, counted from 0 in each attempt, so that a gap is noticed."""


class ChunkWriter:
    """Gathers the chunks of all requests of a replica and writes them in one round trip."""

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._scripts = Scripts(redis)
        self._keys = Keys(namespace)
        self._gathered: dict[tuple[str, str], list[Numbered]] = {}
        self._flushing = asyncio.Lock()

    def begin(self, claimed: ClaimedRequest) -> Callable[[Mapping[str, Any]], None]:
        """Begins an attempt; what it gives takes each chunk of the answer, as the HTTP API would send it."""
        numbers = itertools.count()

        def take(chunk: Mapping[str, Any]) -> None:
            self._gathered.setdefault((claimed.batch_id, claimed.fence), []).append((next(numbers), chunk))

        return take

    async def flush(self) -> None:
        """Writes what was gathered.

        Raises:
            redis.exceptions.RedisError: Redis is away. What was gathered is kept, as far as there is room.
        """
        async with self._flushing:  # One after the other: chunks must not overtake each other.
            if self._gathered:
                await self._write()

    async def _write(self) -> None:
        gathered, self._gathered = self._gathered, {}
        try:
            calls: list[tuple[BatchKeys, list[str | int]]] = [
                (self._keys.batch(batch_id), [MOST_ENTRIES, KEPT_MS, fence, json.dumps(chunks, separators=(",", ":"))])
                for (batch_id, fence), chunks in gathered.items()
            ]
            await self._scripts.run_all("stream", calls)
        except (RedisError, OSError):
            room = MOST_UNWRITTEN
            for claim, chunks in gathered.items():
                kept = chunks[:room]
                self._gathered[claim] = [*kept, *self._gathered.get(claim, [])]
                room -= len(kept)
            raise


def read_entry(fields: Mapping[str, str]) -> tuple[str, list[Numbered]] | None:
    """The fence of the claim that made them and the chunks of an entry; None: it says that the request is done."""
    if "done" in fields:
        return None
    return fields["fence"], [(number, chunk) for number, chunk in json.loads(fields["chunks"])]
