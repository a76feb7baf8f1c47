"""`conserve bench`: the benchmarks, which are programs of their own (`loadtests`), under one name with the rest."""

from __future__ import annotations

import os
import sys
from typing import Final

import typer

app = typer.Typer(help="Benchmarks. Each wants the machine for itself.", no_args_is_help=True)

_PASSED_ON: Final = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_PASSED_ON)
def engine(context: typer.Context) -> None:
    """ConServe beside stock vLLM on one engine; about 40 minutes. `--help` has its options."""
    _become("loadtests.coserve", context.args)


@app.command(context_settings=_PASSED_ON)
def front(context: typer.Context) -> None:
    """Load through the front door: chats alone, beside batches, and what the front costs. `--help` has its options."""
    _become("loadtests.loadtest", context.args)


def _become(module: str, arguments: list[str]) -> None:
    """Goes on as another program: signals, terminal and exit status are that one's."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - no shell is wanted
