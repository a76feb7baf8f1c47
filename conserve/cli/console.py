"""How the command line speaks: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from conserve.client import Client, ConServeError, UnreachableError
from conserve.client.async_client import find_url

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

RETRIES = 2
"""A person waits a second or two for what may pass."""
PATIENT_RETRIES = 7
"""Whoever follows a batch waits for half a minute."""
_SILENT_PAUSE_S = 2.0
_NOT_CUT = 10_000

UrlOption = Annotated[
    str, typer.Option("--url", envvar="CONSERVE_URL", help="Where the application listens.", metavar="URL")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, on standard output.")]


def say_progress(line: str) -> None:
    """Shows one step of something that takes a while."""
    err.print(line, style="dim", markup=False)


def fail(message: str, code: int = 1) -> typer.Exit:
    """Shows an error; raise what it returns."""
    err.print(f"[bold red]error:[/] {escape(message)}", markup=True, soft_wrap=True)
    return typer.Exit(code)


def show_json(value: Any) -> None:
    """Shows a value as JSON, for programs."""
    typer.echo(json.dumps(value, indent=2))


def show_table(table: Table) -> None:
    """Shows a table: with a frame and fitted to a terminal, otherwise one whole line a row, for other programs."""
    if out.is_terminal:
        out.print(table)
        return
    table.box = None
    Console(file=out.file, width=_NOT_CUT, highlight=False).print(table)


@contextmanager
def open_client(url: str, retries: int = RETRIES) -> Iterator[Client]:
    """A client of the application; what goes wrong with its calls becomes one line and exit status 1."""

    def say_retry(error: ConServeError, pause_s: float) -> None:
        if pause_s >= _SILENT_PAUSE_S:
            say_progress(f"{error}; trying again in {pause_s:.0f} s")

    with explain_errors(url), Client(read_url(url), retries=retries, on_retry=say_retry) as client:
        if retries > RETRIES:
            client.is_ready()  # Asked once: whoever will be patient with what runs is told at once that nothing does.
        yield client


def read_url(url: str) -> str:
    """The address of the application; ends the program if it is none."""
    try:
        return find_url(url)
    except ValueError as error:
        raise fail(f"--url: {str(error).removeprefix('base_url ')}", 2) from None


@contextmanager
def explain_errors(url: str) -> Iterator[None]:
    """Turns what goes wrong in a call to the application into one line and exit status 1."""
    try:
        yield
    except UnreachableError:
        raise fail(nothing_answers(url)) from None
    except ConServeError as error:
        raise fail(str(error)) from None


def nothing_answers(url: str) -> str:
    """What to say then."""
    return f"nothing answers at {url}. Is the application up? (`conserve up`, `conserve status`)"


def name_time(at_s: int | None) -> str:
    """In local time; the date only if it is another day's."""
    if at_s is None:
        return ""
    at = datetime.fromtimestamp(at_s).astimezone()
    return at.strftime("%H:%M" if at.date() == datetime.now().astimezone().date() else "%Y-%m-%d %H:%M")
