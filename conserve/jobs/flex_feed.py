"""Hears of all flex requests that a front waits for, over one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from conserve.jobs.keys import Keys

_log = structlog.get_logger(__name__)

BLOCK_MS: Final = 100
"""A request that comes while the others are waited for is heard of so much later, at most."""
_ENTRIES_AT_ONCE: Final = 64
_RETRY_S: Final = 0.5

Entry = Mapping[str, str]


@dataclass(eq=False)
class Subscription:
    """The entries of one request as they come, or the error that ends it."""

    key: str
    last_id: str = "0"
    entries: asyncio.Queue[Entry | Exception] = field(default_factory=asyncio.Queue)

    async def next(self, timeout_s: float) -> Entry | None:
        """The next entry; None when there was none for so long.

        Raises:
            RedisError: Redis is away.
            OSError: the same.
        """
        try:
            async with asyncio.timeout(timeout_s):
                entry = await self.entries.get()
        except TimeoutError:
            return None
        if isinstance(entry, Exception):
            raise entry
        return entry


class FlexFeed:
    """Reads the streams of all requests that are waited for.

    Args:
        redis: A client that decodes to `str`.
        namespace: Prefix of every key.
    """

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis: Any = redis  # As in `registry.BatchRegistry`.
        self._keys = Keys(namespace)
        self._subscriptions: dict[str, Subscription] = {}
        self._wanted = asyncio.Event()

    @contextmanager
    def subscribe(self, batch_id: str) -> Iterator[Subscription]:
        """Hears of a request from its beginning on, until the block ends."""
        subscription = Subscription(self._keys.batch(batch_id).stream)
        self._subscriptions[subscription.key] = subscription
        self._wanted.set()
        try:
            yield subscription
        finally:
            del self._subscriptions[subscription.key]

    async def run(self) -> NoReturn:
        """Reads until cancelled. Without Redis everybody who waits is told; who comes later is heard again."""
        while True:
            if not self._subscriptions:
                self._wanted.clear()
                await self._wanted.wait()
            try:
                await self._read()
            except (RedisError, OSError) as error:
                _log.warning("flex requests cannot be followed", waiting=len(self._subscriptions), reason=str(error))
                for subscription in self._subscriptions.values():
                    subscription.entries.put_nowait(error)
                await asyncio.sleep(_RETRY_S)

    async def _read(self) -> None:
        places = {key: one.last_id for key, one in self._subscriptions.items()}
        answer = await self._redis.xread(places, count=_ENTRIES_AT_ONCE, block=BLOCK_MS)
        # One shape or the other, by the version of the protocol.
        for key, entries in answer.items() if isinstance(answer, dict) else answer:
            subscription = self._subscriptions.get(key)
            if subscription is None:
                continue
            for entry_id, fields in entries:
                subscription.last_id = entry_id
                subscription.entries.put_nowait(fields)
