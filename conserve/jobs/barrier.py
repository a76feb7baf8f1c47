"""Waits until what was written to Redis is on its disk, before something is acknowledged to a client."""

from __future__ import annotations

import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from conserve.jobs.errors import NotDurableError
from conserve.jobs.keys import Keys
from conserve.jobs.scripts import read_script

_log = structlog.get_logger(__name__)

_WAIT_MS = 4_000  # Less than the socket timeout of `connection.connect`.
_MARKER_MS = 60_000
_UNKNOWN, _NO_FILE = "unknown command", "appendonly is disabled"


class DiskBarrier:
    """`WAITAOF` where the server has it (Redis 7.2, Valkey); without it `connect` has seen to `appendfsync always`."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._available = True
        self._write = read_script("barrier")

    async def wait(self, tag: str) -> None:
        """Returns once every earlier write to the slot of `tag` (a batch or file id) is on the server's disk.

        WAITAOF waits for writes of its own connection only, and earlier ones came through others of the pool. The
        append-only file is sequential, so waiting for one more write, made here, covers them all.

        Raises:
            NotDurableError: the server did not confirm within 4 seconds, or refused to.
            redis.exceptions.RedisError: the connection broke.
        """
        if not self._available:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.eval(self._write, 1, self._keys.barrier(tag), _MARKER_MS)
            pipe.execute_command("WAITAOF", 1, 0, _WAIT_MS)
            written, answer = await pipe.execute(raise_on_error=False)
        _check(written)  # Without it WAITAOF would have waited for older writes only.
        if isinstance(answer, NoPermissionError) or _says(answer, _UNKNOWN):
            self._available = False
            _log.info("redis cannot confirm writes to its disk", reason=str(answer))
            return
        if _says(answer, _NO_FILE):
            return  # `connect` has warned.
        _check(answer)
        if int(answer[0]) < 1:
            raise NotDurableError(f"Redis did not write to its disk within {_WAIT_MS} ms.")


def _check(answer: object) -> None:
    if isinstance(answer, RedisConnectionError | RedisTimeoutError):
        raise answer
    if isinstance(answer, Exception):
        raise NotDurableError(f"Redis does not confirm what was written: {answer}") from answer


def _says(answer: object, text: str) -> bool:
    return isinstance(answer, ResponseError) and text in str(answer).lower()
