"""Sees when the outputs of online requests leave the engine, one for each iteration that a request was in."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

from conserve.engine.vllm_output_compat import find_queued_s


class OutputWatcher(Protocol):
    """Hears of it."""

    def note_queued(self, priority: int, queued_s: float) -> None:
        """A request of this priority has waited so long until an iteration took it in."""

    def note_gap(self, priority: int, gap_s: float) -> None:
        """An output of a request of this priority came so long after the one before."""


async def watch_outputs(
    outputs: AsyncGenerator[Any, None],
    priority: int,
    watcher: OutputWatcher,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Any, None]:
    """Passes the outputs of one request on."""
    last_s = 0.0
    async with aclosing(outputs):
        async for output in outputs:
            now_s = clock()
            if last_s:
                watcher.note_gap(priority, now_s - last_s)
            elif (queued_s := find_queued_s(output)) is not None:
                watcher.note_queued(priority, queued_s)
            last_s = now_s
            yield output
