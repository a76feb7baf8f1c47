"""Connections of redis-py that a cancelled task really leaves."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection


def honour_cancellation(redis: Redis) -> None:
    """Makes the client's future connections raise CancelledError whenever their task is cancelled while sending.

    redis-py 8.1 sends inside `asyncio.wait_for`, which in Python 3.11 drops a cancellation that arrives in the moment
    in which the sending ends (python/cpython#86296): a loop over Redis commands would then run on for ever.
    """
    pool = redis.connection_pool
    plain = pool.connection_class
    pool.connection_class = type(plain.__name__, (_Cancellable, plain), {})


class _Cancellable(AbstractConnection):
    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        task = asyncio.current_task()
        requests = task.cancelling() if task else 0  # More than 0 where a cancelled task still tidies up.
        await super().send_packed_command(command, check_health)
        if task and task.cancelling() > requests:
            await self.disconnect(nowait=True)  # The answer to what was sent would be taken for the next one's.
            raise asyncio.CancelledError
