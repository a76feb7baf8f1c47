"""Measurements that end with a word, not with a traceback, when Ctrl-C or SIGTERM comes."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import typer
from rich.console import Console

from conserve.launch.interruption import Interruption
from loadtests.supervision import INTERRUPTED

T = TypeVar("T")


def run_interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` in an event loop of its own; a signal cancels it, and it cleans up.

    Raises:
        typer.Exit: with 130, a signal came.
    """
    with Interruption() as interruption:
        try:
            return interruption.run(work)
        except KeyboardInterrupt:
            Console(stderr=True).print("Interrupted: nothing is written.")
            raise typer.Exit(INTERRUPTED) from None
