"""The flex requests that a front waits for: it says so again and again, and lets go of each in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, NoReturn

import structlog
from redis.exceptions import RedisError

from conserve.jobs.flex_requests import FlexRequests

_log = structlog.get_logger(__name__)

LONGEST_PERIOD_S: Final = 2.0
"""From one word to the next, for all requests; less with short leases."""
MOST_GOODBYES: Final = 10_000
"""That wait for Redis. Of further ones the oldest are left to the keeper, who does not hear of them any more."""
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.1, 5.0
_AT_ONCE: Final = 200


class FlexWaiters:
    """Keeps the word of one front.

    Args:
        requests: In Redis.
        lease_ms: A request not heard of for so long is let go by the keeper.
        clock: Seconds, monotonic.
    """

    def __init__(self, requests: FlexRequests, lease_ms: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = requests
        self._period_s = min(lease_ms / 3000, LONGEST_PERIOD_S)
        self._clock = clock
        self._waiting: dict[str, float] = {}
        self._goodbyes: dict[str, float] = {}
        self._leaving: asyncio.Task[None] | None = None

    def enter(self, batch_id: str, until_s: float) -> None:
        """Begins to wait for a request that is about to be made; it ends by itself at `until_s` of the clock."""
        self._waiting[batch_id] = until_s

    def forget(self, batch_id: str) -> None:
        """A request was refused: there is nothing to let go of."""
        self._waiting.pop(batch_id, None)

    def leave(self, batch_id: str) -> None:
        """Lets go of a request, as soon as Redis answers; its caller may be cancelled already."""
        until_s = self._waiting.pop(batch_id, None)
        if until_s is None:
            return
        self._goodbyes[batch_id] = until_s
        while len(self._goodbyes) > MOST_GOODBYES:
            del self._goodbyes[next(iter(self._goodbyes))]
        if self._leaving is None or self._leaving.done():
            self._leaving = asyncio.create_task(self._say_goodbyes())

    async def run(self) -> NoReturn:
        """Says what is waited for, until cancelled."""
        while True:
            try:
                await self._requests.attend(list(self._waiting))
            except (RedisError, OSError) as error:
                _log.warning("flex requests cannot be attended to", waiting=len(self._waiting), reason=str(error))
            await asyncio.sleep(self._period_s)

    async def _say_goodbyes(self) -> None:
        pause_s = _FIRST_RETRY_S
        while self._goodbyes:
            batch_ids = list(self._goodbyes)[:_AT_ONCE]
            try:
                await self._requests.let_go(batch_ids)
            except (RedisError, OSError) as error:
                _log.warning("flex requests cannot be let go of", waiting=len(self._goodbyes), reason=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_RETRY_S)
                now_s = self._clock()
                # What is over by itself needs no word.
                self._goodbyes = {one: until_s for one, until_s in self._goodbyes.items() if until_s > now_s}
            else:
                pause_s = _FIRST_RETRY_S
                for batch_id in batch_ids:
                    self._goodbyes.pop(batch_id, None)
