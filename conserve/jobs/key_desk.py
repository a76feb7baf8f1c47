"""The API keys for who runs the installation: from the command line, with the application up or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from conserve.config import EMBEDDED_REDIS, Settings
from conserve.jobs import embedded
from conserve.jobs.api_keys import ApiKeyStore
from conserve.jobs.connection import connect

LIMIT_S = 30.0

Answer = TypeVar("Answer")


async def use_keys(settings: Settings, work: Callable[[ApiKeyStore], Awaitable[Answer]]) -> Answer:
    """Does something with the keys in the Redis of these settings; an embedded one that does not run does meanwhile.

    Raises:
        UnsuitableServerError, EmbeddedServerError: as `connection.connect`.
        redis.exceptions.RedisError, OSError: the server cannot be reached, does not answer, or refuses.
    """
    starts = settings.jobs.redis_url == EMBEDDED_REDIS and not embedded.is_running(settings.state_dir)
    try:
        async with asyncio.timeout(LIMIT_S):
            redis = await connect(settings, check_files=False)
            try:
                return await work(ApiKeyStore(redis, settings.jobs.namespace))
            finally:
                await redis.aclose()
    finally:
        if starts:
            await asyncio.to_thread(embedded.stop, settings.state_dir)
