"""`conserve batch submit|list|status|watch|results|pause|resume|priority|cancel`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from conserve.cli.completion import complete_batches
from conserve.cli.console import (
    PATIENT_RETRIES,
    RETRIES,
    JsonOption,
    UrlOption,
    err,
    fail,
    name_time,
    open_client,
    out,
    say_progress,
    show_json,
    show_table,
)
from conserve.client import Batch, Job
from conserve.client.api import FileKind
from conserve.client.async_client import DEFAULT_URL
from conserve.jobs.batch import HIGHEST_PRIORITY, LOWEST_PRIORITY
from conserve.jobs.expiry import LONGEST_S, SHORTEST_S
from conserve.jobs.window import parse_window

app = typer.Typer(help="Batches of requests, in the format of OpenAI's Batch API.", no_args_is_help=True)

BatchArgument = Annotated[
    str, typer.Argument(help="The batch's id, batch_...", metavar="BATCH", autocompletion=complete_batches)
]


@app.command()
def submit(
    file: Annotated[
        Path, typer.Argument(help="JSON lines: custom_id, method, url, body.", exists=True, dir_okay=False)
    ],
    url: UrlOption = DEFAULT_URL,
    endpoint: Annotated[str, typer.Option(help="What the lines ask.")] = "/v1/chat/completions",
    window: Annotated[str, typer.Option(help="Time to complete it in: such as 30m, 24h, 7d.")] = "24h",
    metadata: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, kept with the batch; up to 16.")] = None,
    priority: Annotated[
        int, typer.Option(help="Batches of higher priority go first.", min=LOWEST_PRIORITY, max=HIGHEST_PRIORITY)
    ] = 0,
    keep_output: Annotated[
        str | None, typer.Option(help="Delete its output files after so long: such as 12h, 7d.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show progress until it has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Uploads a file and makes a batch of it; prints the batch's id."""
    pairs = dict(_split_pair(text) for text in metadata or [])
    kept_s = None if keep_output is None else _read_time(keep_output)
    with open_client(url, PATIENT_RETRIES if watch else RETRIES) as client:
        with _explain_read(file), err.status(f"Uploading {escape(str(file))}, {file.stat().st_size:,} bytes"):
            job = client.submit(
                file,
                endpoint=endpoint,
                window=window,
                metadata=pairs or None,
                priority=priority,
                output_kept_s=kept_s,
            )
        if watch:
            if not as_json:
                out.print(job.id)
            _watch(job, as_json=as_json)
        elif as_json:
            _show(job.batch, as_json=True)
        else:
            out.print(job.id)


@app.command(name="list")
def list_batches(
    url: UrlOption = DEFAULT_URL,
    limit: Annotated[int, typer.Option(help="How many, the newest ones.", min=1, max=100)] = 20,
    as_json: JsonOption = False,
) -> None:
    """Shows the newest batches."""
    with open_client(url) as client:
        batches = [job.batch for job in client.list(limit)]
    if as_json:
        show_json([batch.model_dump(mode="json") for batch in batches])
        return
    table = Table("batch", "status", "window")
    for name in ("total", "completed", "failed"):
        table.add_column(name, justify="right")
    table.add_column("will end")
    for batch in batches:
        counts = batch.request_counts
        numbers = (counts.total, counts.completed, counts.failed)
        ends = name_time(batch.predicted_end_at)
        table.add_row(batch.id, _name_status(batch), batch.completion_window, *map(str, numbers), ends)
    show_table(table)


@app.command()
def status(batch_id: BatchArgument, url: UrlOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """Shows how far a batch is."""
    with open_client(url) as client:
        _show(client.get(batch_id).batch, as_json=as_json)


@app.command()
def watch(batch_id: BatchArgument, url: UrlOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """Shows a batch's progress until it has ended. Exit status 1 when it ended otherwise than completed."""
    with open_client(url, PATIENT_RETRIES) as client:
        _watch(client.get(batch_id), as_json=as_json)


@app.command()
def results(
    batch_id: BatchArgument,
    url: UrlOption = DEFAULT_URL,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; by default standard output.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="The error file in place of the output file.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Results and errors as they come, until the batch has ended.")
    ] = False,
) -> None:
    """Downloads the output file of a batch that has ended, or follows the results of one that runs: lines of JSON."""
    if follow and errors:
        raise fail("--errors: not with --follow, which shows results and errors", 2)
    with open_client(url, PATIENT_RETRIES if follow else RETRIES) as client:
        job = client.get(batch_id)
        if follow:
            _write(job.lines(), output)
            return
        kind: FileKind = "error" if errors else "output"
        if (job.batch.error_file_id if errors else job.batch.output_file_id) is None:
            reason = "no line went there" if job.batch.status.ended else f"the batch is {job.batch.status}"
            raise fail(f"{batch_id} has no {kind} file: {reason}")
        _write(job.read_file(kind), output)


@app.command()
def pause(batch_id: BatchArgument, url: UrlOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """Begins no further request of a batch; its completion window goes on."""
    _act(url, batch_id, Job.pause, as_json=as_json)


@app.command()
def resume(batch_id: BatchArgument, url: UrlOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """Lets a paused batch go on."""
    _act(url, batch_id, Job.resume, as_json=as_json)


@app.command(context_settings={"ignore_unknown_options": True})  # A negative number is no option.
def priority(
    batch_id: BatchArgument,
    value: Annotated[int, typer.Argument(help="-100 to 100.", min=LOWEST_PRIORITY, max=HIGHEST_PRIORITY)],
    url: UrlOption = DEFAULT_URL,
    as_json: JsonOption = False,
) -> None:
    """Gives a batch another priority; higher goes first."""
    _act(url, batch_id, lambda job: job.prioritise(value), as_json=as_json)


@app.command()
def cancel(batch_id: BatchArgument, url: UrlOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """Cancels a batch; what is done stays in its output file."""
    _act(url, batch_id, Job.cancel, as_json=as_json)


def _act(url: str, batch_id: str, action: Callable[[Job], Batch], *, as_json: bool) -> None:
    with open_client(url) as client:
        _show(action(client.get(batch_id)), as_json=as_json)


def _write(pieces: Iterator[bytes], output: Path | None) -> None:
    """Writes pieces of result lines as they come."""
    if output is None:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return
    with _explain_write(output), output.open("wb") as file, err.status("Waiting for results") as status:
        written = 0
        for piece in pieces:
            file.write(piece)
            file.flush()
            written += len(piece)
            status.update(f"{written:,} bytes")


@contextmanager
def _explain_read(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fail(f"FILE: {file} cannot be read: {error.strerror or error}", 2) from None


@contextmanager
def _explain_write(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fail(f"--output: {output} cannot be written: {error.strerror or error}") from None
    out.print(f"{output}: {output.stat().st_size} bytes", markup=False, soft_wrap=True)


def _read_time(text: str) -> int:
    try:
        seconds = parse_window(text, LONGEST_S)
    except ValueError:
        seconds = 0
    if seconds < SHORTEST_S:
        raise fail(f"--keep-output: must be 1h to 30d (it is {text!r})", 2)
    return seconds


def _split_pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise fail(f"--metadata: must be KEY=VALUE (it is {text!r})", 2)
    return key, value


def _show(batch: Batch, *, as_json: bool = False) -> None:
    if as_json:
        show_json(batch.model_dump(mode="json"))
        return
    counts = batch.request_counts
    done = (
        f"{counts.completed} completed, {counts.failed} failed of {counts.total}" if counts.total else "not counted yet"
    )
    out.print(f"{batch.id}: [bold]{_name_status(batch)}[/], {done}")
    if batch.delayed_because:
        out.print(f"  does not get on: {batch.delayed_because} It is tried again.", markup=False, soft_wrap=True)
    end_at = batch.predicted_end_at
    if end_at is not None and batch.expires_at is not None:
        late = ", [bold red]too late[/]" if end_at > batch.expires_at else ""
        out.print(f"  will end about {name_time(end_at)}{late} (window until {name_time(batch.expires_at)})")
    if batch.admission == "window_too_short":
        earliest = batch.earliest_completion_window or "none"
        out.print(f"  its window was found too short when it was taken; the earliest was {earliest}")
    if batch.deadline_backed_by == "forecast":
        out.print("  its window is a forecast only: nothing is kept free for it beside online load (deadline_floor: 0)")
    for error in (batch.errors.data if batch.errors else [])[:10]:
        place = f"line {error.line}: " if error.line else ""
        out.print(f"  {place}{error.message} ({error.code})", markup=False, soft_wrap=True)


def _name_status(batch: Batch) -> str:
    return f"{batch.status} (paused)" if batch.paused_at is not None else str(batch.status)


def _watch(job: Job, *, as_json: bool) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("waiting", total=None)

        def show(batch: Batch) -> None:
            counts = batch.request_counts
            if counts.total:
                done = counts.completed + counts.failed
                progress.update(task, total=counts.total, completed=done, description=_name_status(batch))

        try:
            batch = job.wait(on_progress=show)
        except KeyboardInterrupt:
            progress.stop()
            say_progress(f"the batch goes on: conserve batch watch {job.id}, conserve batch cancel {job.id}")
            raise
    _show(batch, as_json=as_json)
    if batch.status != "completed":
        raise typer.Exit(1)
