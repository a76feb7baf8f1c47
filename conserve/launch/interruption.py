"""Ctrl-C, SIGTERM and SIGHUP, so that clean-up runs once and to its end however often they come."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Turns the first signal into one `KeyboardInterrupt` of the main thread; what comes after it is ignored.

    Use it as a context manager of the main thread around everything that must be cleaned up. Signal handlers are put
    back at the end.
    """

    def __init__(self) -> None:
        self.requested = False
        self._armed = True
        self._cancel: Callable[[], object] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def disarm(self) -> None:
        """From here on no signal raises: clean-up is under way. `requested` still tells whether one came."""
        self._armed = False

    def arm(self) -> None:
        """From here on the next signal raises again.

        Raises:
            KeyboardInterrupt: one came meanwhile.
        """
        self._armed = True
        if self.requested:
            self._armed = False
            raise KeyboardInterrupt

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` in an event loop of its own; a signal cancels it.

        Raises:
            KeyboardInterrupt: a signal came; `work` has had the time it takes to clean up.
        """
        try:
            result = asyncio.run(self._run_cancellable(work))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        if self.requested:  # it came when the work was as good as done
            raise KeyboardInterrupt
        return result

    async def _run_cancellable(self, work: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await task
        finally:
            self._cancel = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._armed:
            return
        self._armed = False
        if self._cancel is not None:
            self._cancel()
        else:
            raise KeyboardInterrupt


def renew_handlers() -> None:
    """Puts the handlers of signals back that a library has replaced without Python knowing.

    Ray does (2.60, at `ray.init`): SIGTERM then ends the process at once, with nothing cleaned up. Call it from the
    main thread.
    """
    for number in SIGNALS:
        signal.signal(number, signal.getsignal(number))
