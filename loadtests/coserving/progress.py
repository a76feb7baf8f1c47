"""What the benchmark shows while it runs: which step of how many, and how long it will take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from loadtests.display import format_clock

_TICK_S = 0.5


class BenchProgress:
    """Two bars on a terminal, one line a step elsewhere; enter it as a context manager.

    Args:
        console: Where to.
        planned_s: How long everything takes.
    """

    def __init__(self, console: Console, planned_s: float) -> None:
        self._console = console
        self._left_s = planned_s
        self._started_s = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._whole: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._whole = self._bars.add_task("[bold]whole benchmark", total=self._left_s, left="")
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def replan(self, left_s: float) -> None:
        """From now on, so many seconds are left."""
        self._left_s = left_s

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        self._console.print(Text(f"{format_clock(time.monotonic() - self._started_s)}  {text}"), soft_wrap=True)

    @asynccontextmanager
    async def step(self, name: str, expected_s: float) -> AsyncIterator[None]:
        """Shows a step while its body runs; `expected_s` is what the plan has for it."""
        self.say(f"{name} ({format_clock(expected_s)}; then {format_clock(max(0.0, self._left_s - expected_s))} left)")
        ticking = asyncio.create_task(self._tick(name, expected_s))
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.wait([ticking])
            self._left_s = max(0.0, self._left_s - expected_s)

    async def _tick(self, name: str, expected_s: float) -> None:
        if self._whole is None:
            return
        bar = self._bars.add_task(name, total=expected_s, left="")
        began_s, left_s = time.monotonic(), self._left_s
        try:
            while True:
                passed_s = min(time.monotonic() - began_s, expected_s)
                whole_s = time.monotonic() - self._started_s
                self._bars.update(bar, completed=passed_s)
                left = f"{format_clock(max(0.0, left_s - passed_s))} left"
                self._bars.update(self._whole, completed=whole_s, total=whole_s + left_s - passed_s, left=left)
                await asyncio.sleep(_TICK_S)
        finally:
            self._bars.remove_task(bar)
