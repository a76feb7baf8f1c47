"""What the keeper does about batches that do not get on: it waits longer each time, and says why in a few words."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass

from redis.exceptions import RedisError

from conserve.jobs.batch import ActiveBatch, BatchStatus
from conserve.jobs.errors import NotDurableError
from conserve.jobs.outages import is_out_of_memory, is_outage

_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 60.0


@dataclass(slots=True)
class _Trouble:
    status: BatchStatus
    failures: int = 0
    not_before_s: float = 0.0


class Troubles:
    """When each batch that failed to get on is tried again; forgotten with the process.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._found: dict[str, _Trouble] = {}

    def holds_up(self, batch: ActiveBatch) -> bool:
        """True while a batch is to be left alone; not any more once it was cancelled."""
        trouble = self._found.get(batch.batch_id)
        return trouble is not None and trouble.status is batch.status and self._clock() < trouble.not_before_s

    def add(self, batch: ActiveBatch) -> float:
        """Counts a failure; returns for how long the batch is left alone, in seconds: twice as long each time."""
        trouble = self._found.setdefault(batch.batch_id, _Trouble(batch.status))
        pause_s: float = min(_BACKOFF_S * 2**trouble.failures, _LONGEST_BACKOFF_S)
        trouble.status = batch.status
        trouble.failures = min(trouble.failures + 1, 30)
        trouble.not_before_s = self._clock() + pause_s
        return pause_s

    def clear(self, batch_id: str) -> None:
        """A batch has got on."""
        self._found.pop(batch_id, None)

    def keep_only(self, batch_ids: Collection[str]) -> None:
        """Forgets all other batches."""
        for batch_id in self._found.keys() - set(batch_ids):
            del self._found[batch_id]


def explain(error: Exception) -> str:
    """Why a batch does not get on, for its client: without names of the machine's files or words of our code."""
    match error:
        case RedisError() if is_out_of_memory(error):
            return "Redis is out of memory."
        case RedisError() if is_outage(error):
            return "Redis is not available."
        case NotDurableError():
            return "Redis does not confirm that it has written to its disk."
        case TimeoutError():
            return "It took too long."
        case OSError():
            said = f": {os.strerror(error.errno)}" if error.errno else ""
            return f"The file storage is not available{said}."
        case _:
            return "Something unforeseen happened; the log of the controller says what."
