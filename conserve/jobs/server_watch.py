"""What the keeper looks for at the server before each round: restarts, and jumps of the clock that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import structlog
from redis.asyncio import Redis

from conserve.jobs.clock import read_server_ms

_log = structlog.get_logger(__name__)

_SMALLEST_JUMP_S = 1.0


class ServerView(NamedTuple):
    """What was seen: `now_ms` is the server's time, Unix milliseconds; the others say what was since the last look."""

    now_ms: int
    restarted: bool
    jumped: bool


class ServerWatch:
    """Compares the server's clock with one that does not jump.

    That of the server is set by its host, and may be another host's after a failover. When it leaps forward, leases and
    windows that have time left seem to be over. So does this process after a pause in which its own clock stood still,
    which is as well: then, too, leases are over that replicas were given no chance to renew.

    Args:
        redis: the server.
        clock: in seconds, monotonic.
        lease_ms: a jump of half of it (and more than a second) counts. Less does not end what is renewed in time.
    """

    def __init__(self, redis: Redis, clock: Callable[[], float], lease_ms: int) -> None:
        self._redis: Any = redis
        self._clock = clock
        self._smallest_jump_s = max(lease_ms / 2000, _SMALLEST_JUMP_S)
        self._run_id: str | None = None
        self._most_ahead_s: float | None = None

    async def look(self) -> ServerView:
        """Looks at the server; logs what is unusual.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        run_id = str((await self._redis.info("server")).get("run_id"))
        restarted = self._run_id not in (None, run_id)
        if restarted:
            _log.info("redis was restarted: leases are left alone for one period")
        self._run_id = run_id

        # The server read its clock between the two readings of ours, however long that took.
        before_s = self._clock()
        now_ms = await read_server_ms(self._redis)
        most_ahead_s, least_ahead_s = now_ms / 1000 - before_s, now_ms / 1000 - self._clock()
        ahead_s = 0.0 if self._most_ahead_s is None else least_ahead_s - self._most_ahead_s
        self._most_ahead_s = most_ahead_s
        jumped = ahead_s > self._smallest_jump_s
        if jumped:
            _log.warning(
                "the clock of redis jumped forward: leases and windows are left alone for one period", by_s=ahead_s
            )
        return ServerView(now_ms, restarted, jumped)
