"""Looks at Redis before anything else is started, so that who starts it is told what is wrong with it."""

from __future__ import annotations

import asyncio

from redis.exceptions import RedisError

from conserve.config import Settings
from conserve.jobs.connection import connect

LIMIT_S = 30.0


def check_server(settings: Settings) -> str | None:
    """Connects once, as the application will.

    Returns:
        None where that works; otherwise why the server cannot be reached from here, which may pass.

    Raises:
        UnsuitableServerError: It is reached and will not do; the message says what to change.
        EmbeddedServerError: The embedded server does not start.
    """
    try:
        asyncio.run(_connect_once(settings))
    except (RedisError, OSError, TimeoutError) as error:
        return str(error) or type(error).__name__
    return None


async def _connect_once(settings: Settings) -> None:
    async with asyncio.timeout(LIMIT_S):
        redis = await connect(settings)
        await redis.aclose()
