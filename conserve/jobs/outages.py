"""Which errors of Redis pass by themselves: it is away, is starting, or takes nothing in at the moment."""

from __future__ import annotations

import re

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

# Error codes that say so: https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors. The client knows
# some of them by type, but not where they stand inside the error of a script (before Redis 7) or of a pipeline.
_PASSING = re.compile(r"\b(?:OOM|MISCONF|READONLY|LOADING|NOREPLICAS|MASTERDOWN|BUSY)\b")
_OUT_OF_MEMORY = re.compile(r"\bOOM\b|used memory > 'maxmemory'")


def is_outage(error: BaseException) -> bool:
    """True for an error of Redis that says nothing about the call: later it may do."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError | ReadOnlyError | OutOfMemoryError):
        return True
    return isinstance(error, RedisError) and (_PASSING.search(str(error)) is not None or is_out_of_memory(error))


def is_out_of_memory(error: BaseException) -> bool:
    """True when Redis has no memory for what is new (`noeviction`); what was accepted gets on all the same."""
    if isinstance(error, OutOfMemoryError):
        return True
    return isinstance(error, RedisError) and _OUT_OF_MEMORY.search(str(error)) is not None
