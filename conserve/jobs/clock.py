"""The clock that counts: the Redis server's. Those of clients and replicas may differ."""

from __future__ import annotations

from typing import Any


async def read_server_ms(redis: Any) -> int:
    """Unix milliseconds by the server's clock."""
    return to_ms(await redis.time())


def to_ms(answer: tuple[int, int]) -> int:
    """Unix milliseconds of an answer to TIME: seconds, and microseconds of the running second."""
    seconds, microseconds = answer
    return int(seconds) * 1000 + int(microseconds) // 1000
