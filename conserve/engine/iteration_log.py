"""Every iteration of an engine in a file, for those who want to know afterwards where the time went."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple


class Iteration(NamedTuple):
    """One iteration with at least one token.

    Attributes:
        start_s, end_s: From its turn to its outputs, by `time.monotonic`.
        online_prefill_tokens, online_decodes, offline_tokens: What it computed.
        predicted_ms: Time it was predicted to take.
        limit_ms: Time it was allowed to take with offline tokens in it; 0 for no limit, as with one kind of request.
        first_layer: It computed the layers from this one on: 0, unless it continued a stopped one.
        stop_layer: It was stopped before this layer; -1 if it came to its end.
        announced_s, stopped_s: When the request that it was stopped for was announced, and when it stopped; 0 if there
            is none.
    """

    start_s: float
    end_s: float
    online_prefill_tokens: float
    online_decodes: float
    offline_tokens: float
    predicted_ms: float
    limit_ms: float
    first_layer: float = 0.0
    stop_layer: float = -1.0
    announced_s: float = 0.0
    stopped_s: float = 0.0

    @property
    def in_time(self) -> bool:
        """Whether it kept within its limit."""
        return not self.limit_ms or (self.end_s - self.start_s) * 1e3 <= self.limit_ms


_RECORD = struct.Struct(f"{len(Iteration._fields)}d")


class IterationWriter:
    """The scheduler's end of the log."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, iteration: Iteration) -> None:
        """Adds an iteration; takes some microseconds."""
        self._file.write(_RECORD.pack(*iteration))

    def close(self) -> None:
        """Ends the log."""
        self._file.close()


def read_iterations(path: Path, since_s: float = 0.0) -> list[Iteration]:
    """The iterations that ended after `since_s`, in their order; the last one may be on its way and is left out."""
    content = path.read_bytes()
    whole = content[: len(content) // _RECORD.size * _RECORD.size]
    iterations = (Iteration(*values) for values in _RECORD.iter_unpack(whole))
    return [iteration for iteration in iterations if iteration.end_s > since_s]
