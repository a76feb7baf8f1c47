"""`conserve batch submit|list|status|watch|results|pause|resume|priority|cancel`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import openai
import typer
from openai.types import Batch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from conserve.cli.console import DEFAULT_URL, UrlOption, err, explain_errors, fail, make_client, out
from conserve.cli.following import ENDED, follow_results
from conserve.jobs.batch import HIGHEST_PRIORITY, LOWEST_PRIORITY
from conserve.jobs.expiry import LONGEST_S, SHORTEST_S
from conserve.jobs.window import parse_window

app = typer.Typer(help="Batches of requests, in the format of OpenAI's Batch API.", no_args_is_help=True)

POLL_PERIOD_S = 1.0

BatchArgument = Annotated[str, typer.Argument(help="The batch's id, batch_...", metavar="BATCH")]


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
) -> None:
    """Uploads a file and makes a batch of it; prints the batch's id."""
    pairs = dict(_split_pair(text) for text in metadata or [])
    kept_s = None if keep_output is None else _read_time(keep_output)
    client = make_client(url)
    with explain_errors(url):
        with file.open("rb") as content:
            uploaded = client.files.create(file=content, purpose="batch")
        batch = client.batches.create(
            input_file_id=uploaded.id,
            endpoint=endpoint,  # type: ignore[arg-type] # the server says which it takes
            completion_window=window,  # type: ignore[arg-type] # OpenAI has 24h only
            metadata=pairs or openai.omit,
            output_expires_after={"anchor": "created_at", "seconds": kept_s} if kept_s else openai.omit,
            extra_body={"priority": priority} if priority else None,  # OpenAI has none
        )
    out.print(batch.id)
    if watch:
        _watch(client, batch.id, url)


@app.command(name="list")
def list_batches(
    url: UrlOption = DEFAULT_URL,
    limit: Annotated[int, typer.Option(help="How many, the newest ones.", min=1, max=100)] = 20,
) -> None:
    """Shows the newest batches."""
    with explain_errors(url):
        batches = make_client(url).batches.list(limit=limit).data
    table = Table("batch", "status", "window")
    for name in ("total", "completed", "failed"):
        table.add_column(name, justify="right")
    table.add_column("will end")
    for batch in batches:
        counts = batch.request_counts
        numbers = (counts.total, counts.completed, counts.failed) if counts else (0, 0, 0)
        ends = _name_time(_read_more(batch, "predicted_end_at"))
        table.add_row(batch.id, _name_status(batch), batch.completion_window, *map(str, numbers), ends)
    out.print(table)


@app.command()
def status(batch_id: BatchArgument, url: UrlOption = DEFAULT_URL) -> None:
    """Shows how far a batch is."""
    with explain_errors(url):
        batch = make_client(url).batches.retrieve(batch_id)
    _show(batch)


@app.command()
def watch(batch_id: BatchArgument, url: UrlOption = DEFAULT_URL) -> None:
    """Shows a batch's progress until it has ended. Exit status 1 when it ended otherwise than completed."""
    _watch(make_client(url), batch_id, url)


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
    """Downloads the output file of a batch that has ended, or follows the results of one that runs."""
    if follow:
        if errors:
            raise fail("--errors: not with --follow, which shows results and errors", 2)
        _follow(url, batch_id, output)
        return
    client = make_client(url)
    with explain_errors(url):
        batch = client.batches.retrieve(batch_id)
        file_id = batch.error_file_id if errors else batch.output_file_id
        if file_id is None:
            kind = "error" if errors else "output"
            reason = "no line went there" if batch.status in ENDED else f"the batch is {batch.status}"
            raise fail(f"{batch_id} has no {kind} file: {reason}")
        with client.files.with_streaming_response.content(file_id) as response:
            if output is None:
                for chunk in response.iter_bytes():
                    sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
            else:
                with _explain_write(output):
                    response.stream_to_file(output)


@app.command()
def pause(batch_id: BatchArgument, url: UrlOption = DEFAULT_URL) -> None:
    """Begins no further request of a batch; its completion window goes on."""
    _act(url, f"/batches/{batch_id}/pause")


@app.command()
def resume(batch_id: BatchArgument, url: UrlOption = DEFAULT_URL) -> None:
    """Lets a paused batch go on."""
    _act(url, f"/batches/{batch_id}/resume")


@app.command(context_settings={"ignore_unknown_options": True})  # A negative number is no option.
def priority(
    batch_id: BatchArgument,
    value: Annotated[int, typer.Argument(help="-100 to 100.", min=LOWEST_PRIORITY, max=HIGHEST_PRIORITY)],
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Gives a batch another priority; higher goes first."""
    _act(url, f"/batches/{batch_id}", {"priority": value})


@app.command()
def cancel(batch_id: BatchArgument, url: UrlOption = DEFAULT_URL) -> None:
    """Cancels a batch; what is done stays in its output file."""
    with explain_errors(url):
        batch = make_client(url).batches.cancel(batch_id)
    _show(batch)


def _act(url: str, path: str, body: dict[str, int] | None = None) -> None:
    """What OpenAI's client has no method for."""
    with explain_errors(url):
        batch = make_client(url).post(path, cast_to=Batch, body=body)
    _show(batch)


def _follow(url: str, batch_id: str, output: Path | None) -> None:
    with explain_errors(url):
        if output is None:
            for line in follow_results(url, batch_id):
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        else:
            with _explain_write(output), output.open("wb") as file:
                for line in follow_results(url, batch_id):
                    file.write(line)
                    file.flush()


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


def _show(batch: Batch) -> None:
    counts = batch.request_counts
    done = f"{counts.completed} completed, {counts.failed} failed of {counts.total}" if counts else "not counted yet"
    out.print(f"{batch.id}: [bold]{_name_status(batch)}[/], {done}")
    if delay := (batch.model_extra or {}).get("delayed_because"):
        out.print(f"  does not get on: {delay} It is tried again.", markup=False, soft_wrap=True)
    end_at = _read_more(batch, "predicted_end_at")
    if end_at is not None and batch.expires_at is not None:
        late = ", [bold red]too late[/]" if end_at > batch.expires_at else ""
        out.print(f"  will end about {_name_time(end_at)}{late} (window until {_name_time(batch.expires_at)})")
    if (batch.model_extra or {}).get("admission") == "window_too_short":
        earliest = (batch.model_extra or {}).get("earliest_completion_window")
        out.print(f"  its window was found too short when it was taken; the earliest was {earliest or 'none'}")
    if (batch.model_extra or {}).get("deadline_backed_by") == "forecast":
        out.print("  its window is a forecast only: nothing is kept free for it beside online load (deadline_floor: 0)")
    for error in (batch.errors.data if batch.errors and batch.errors.data else [])[:10]:
        place = f"line {error.line}: " if error.line else ""
        out.print(f"  {place}{error.message} ({error.code})", markup=False, soft_wrap=True)


def _name_status(batch: Batch) -> str:
    paused = _read_more(batch, "paused_at") is not None
    return f"{batch.status} (paused)" if paused else batch.status


def _read_more(batch: Batch, name: str) -> int | None:
    """A time that OpenAI's batches do not have."""
    value = (batch.model_extra or {}).get(name)
    return value if isinstance(value, int) else None


def _name_time(at_s: int | None) -> str:
    """In local time; the date only if it is another day's."""
    if at_s is None:
        return ""
    at = datetime.fromtimestamp(at_s).astimezone()
    return at.strftime("%H:%M" if at.date() == datetime.now().astimezone().date() else "%Y-%m-%d %H:%M")


def _watch(client: openai.OpenAI, batch_id: str, url: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with explain_errors(url), Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("waiting", total=None)
        while True:
            batch = client.batches.retrieve(batch_id)
            counts = batch.request_counts
            if counts is not None and counts.total:
                done = counts.completed + counts.failed
                progress.update(task, total=counts.total, completed=done, description=batch.status)
            if batch.status in ENDED:
                break
            time.sleep(POLL_PERIOD_S)
    _show(batch)
    if batch.status != "completed":
        raise typer.Exit(1)
