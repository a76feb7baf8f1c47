"""Sees when the outputs of online requests leave the engine, one for each iteration that a request was in."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Protocol

from conserve.engine.vllm_output_compat import find_queued_s

_ON_FIRST: ContextVar[Callable[[], None] | None] = ContextVar("on_first", default=None)


def watch_first(on_first: Callable[[], None]) -> None:
    """Has the first output of the request that this task asks for from now on reported."""
    _ON_FIRST.set(on_first)


class OutputWatcher(Protocol):
    """Hears of it."""

    def note_queued(self, priority: int, queued_s: float) -> None:
        """A request of this priority has waited so long until an iteration took it in."""

    def note_gap(self, priority: int, gap_s: float) -> None:
        """An output of a request of this priority came so long after the one before."""


async def watch_outputs(
    outputs: AsyncGenerator[Any, None],
    priority: int,
    watcher: OutputWatcher | None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Any, None]:
    """Passes the outputs of one request on.

    Args:
        outputs: Of the request.
        priority: Of the request.
        watcher: Hears of them; None where they are those of several answers, which come as they please.
        clock: Seconds, monotonic.
    """
    last_s = 0.0
    on_first = _ON_FIRST.get()
    async with aclosing(outputs):
        async for output in outputs:
            now_s = clock()
            if not last_s and on_first is not None:
                on_first()
            if watcher is None:
                pass
            elif last_s:
                watcher.note_gap(priority, now_s - last_s)
            elif (queued_s := find_queued_s(output)) is not None:
                watcher.note_queued(priority, queued_s)
            last_s = now_s
            yield output
