"""Redis as long-lived processes hold it: connected when it is there, waited for when it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from conserve.config import Settings
from conserve.jobs.connection import connect
from conserve.jobs.errors import EmbeddedServerError, UnsuitableServerError

RedisClient = Redis
"""What `keep_connected` hands out, for callers that need the type only."""

OUTAGES = (RedisError, OSError)
"""What calls to Redis raise while it is away."""

log = structlog.get_logger(__name__)

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 10.0
STEADY_S = 30.0
"""Work that went well for so long starts anew without delay when it fails."""


async def keep_connected(settings: Settings, work: Callable[[RedisClient], Awaitable[None]]) -> NoReturn:
    """Runs `work` with a connection until cancelled; connects and starts it again whenever it ends or fails.

    A deployment that starts while Redis is away thus starts all the same: only offline work waits.
    """
    retry_s = FIRST_RETRY_S
    while True:
        started_s = time.monotonic()
        try:
            redis = await connect(settings)
            try:
                await work(redis)
            finally:
                await redis.aclose()
        except (RedisError, OSError, UnsuitableServerError, EmbeddedServerError) as error:
            log.warning("Redis cannot be used", error=str(error), retry_in_s=retry_s)
        except Exception:
            # A fault of ours in a loop must not end harvesting for good.
            log.exception("offline work stopped and is started again", retry_in_s=retry_s)
        if time.monotonic() - started_s > STEADY_S:
            retry_s = FIRST_RETRY_S
        await asyncio.sleep(retry_s)
        retry_s = min(2 * retry_s, LONGEST_RETRY_S)
