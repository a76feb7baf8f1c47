"""`conserve up`, `conserve status`, `conserve down`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from conserve.cli.console import (
    JsonOption,
    UrlOption,
    err,
    fail,
    open_client,
    out,
    say_progress,
    show_json,
    show_table,
)
from conserve.cli.key_notes import note_on_keys
from conserve.client import BatchStatusLine, ReplicaStatus
from conserve.client.async_client import DEFAULT_URL
from conserve.config import SettingsError
from conserve.jobs.errors import EmbeddedServerError
from conserve.launch.interruption import Interruption
from conserve.launch.ray_head import RayHeadError
from conserve.launch.record import StackError
from conserve.launch.serve_api import ServeApiError
from conserve.launch.serve_config import read_serve_config
from conserve.launch.stack import LocalStack, RunningStack
from conserve.launch.teardown import take_down
from conserve.launch.watch import tell_ready

DEFAULT_CONFIG = Path("serve_config.yaml")
LAUNCH_ERRORS = (StackError, RayHeadError, ServeApiError, EmbeddedServerError, OSError)

ConfigOption = Annotated[
    Path, typer.Option("--file", "-f", envvar="CONSERVE_CONFIG", help="A Ray Serve configuration with our application.")
]


def up(
    config: ConfigOption = DEFAULT_CONFIG,
    address: Annotated[
        str | None, typer.Option(help="Dashboard of a running Ray cluster, such as http://127.0.0.1:8265.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="HTTP port, in place of the configuration's.", min=1, max=65535)
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="gRPC port, in place of the configuration's.", min=1, max=65535)
    ] = None,
    block: Annotated[
        bool,
        typer.Option(
            "--block",
            help="Stay until SIGTERM or Ctrl-C, and take everything down then; fail when it is lost. For services.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Starts the application, with an embedded Redis and a Ray head of its own unless others are named."""
    try:
        stack = LocalStack(config, http_port=port, grpc_port=grpc_port, ray_dashboard_url=address)
    except SettingsError as error:
        raise fail(str(error), 2) from None
    with Interruption() as interruption:
        try:
            try:
                running = stack.up(say_progress)
            finally:
                # A second Ctrl-C must not leave processes behind: taking down is bounded, so it may as well end.
                interruption.disarm()
        except KeyboardInterrupt:
            err.print("Interrupted; taking down what was started.")
            _undo(stack)
            raise typer.Exit(130) from None
        except LAUNCH_ERRORS as error:
            failure = fail(str(error))
            _undo(stack)
            raise failure from None
        if as_json:
            show_json({"url": running.base_url, "dashboard": running.dashboard_url, "logs": str(running.log_dir)})
        else:
            _say_up(stack, running)
        if block:
            _stay(stack, interruption)


def down(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Stops everything that `conserve up` has started. Batches stay in the state folder and go on at the next `up`."""
    try:
        state_dir = read_serve_config(config).settings.state_dir
    except SettingsError as error:
        raise fail(str(error), 2) from None
    try:
        was_up = take_down(state_dir, say_progress)
    except LAUNCH_ERRORS as error:
        raise fail(str(error)) from None
    if as_json:
        show_json({"was_up": was_up})
    else:
        out.print("Down." if was_up else "Nothing was up.")


def status(url: UrlOption = DEFAULT_URL, as_json: JsonOption = False) -> None:
    """Shows replicas with their harvest windows, and the batches that have not ended."""
    with open_client(url) as client:
        is_ready = client.is_ready()
        found = client.status()
    if as_json:
        show_json({"url": url, "ready": is_ready, **found.model_dump(mode="json")})
        return
    out.print("Application:", "[green]ready[/]" if is_ready else "[yellow]not ready[/]", url)
    if found.controller_elsewhere:
        out.print(
            "[yellow]The controller of another cluster is at work in this namespace[/], and this one's waits: "
            f"{escape(str(found.controller))}. Give each deployment a jobs.namespace of its own."
        )
    show_table(make_replica_table(found.replicas))
    if found.batches:
        show_table(make_batch_table(found.batches))


def _say_up(stack: LocalStack, running: RunningStack) -> None:
    name = stack.config.settings.model.served_name
    out.print(f"[bold]Up:[/] {running.base_url}  (model {escape(name)})", soft_wrap=True)
    if running.grpc_address is not None:
        out.print(f"gRPC: {running.grpc_address}", soft_wrap=True)
    out.print(f"Ray dashboard: {running.dashboard_url}   logs: {running.log_dir}", soft_wrap=True)
    if (note := note_on_keys(stack.config)) is not None:
        err.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    hint = "" if running.base_url == DEFAULT_URL else f" --url {running.base_url}"
    if stack.config.settings.model.task == "generate":
        out.print(f"Try: conserve chat{hint} 'What is the capital of France?'", soft_wrap=True)


def _stay(stack: LocalStack, interruption: Interruption) -> None:
    """Stays with a stack that is up, and takes it down in the end, unless somebody else has."""
    lost: Exception | None = None
    try:
        try:
            interruption.arm()
            tell_ready(os.environ)
            stack.watch()
            err.print("Taken down by another command.")
            return
        finally:
            interruption.disarm()
    except KeyboardInterrupt:
        err.print("Asked to stop; taking everything down.")
    except LAUNCH_ERRORS as error:
        lost = error
    try:
        stack.down(say_progress)
    except LAUNCH_ERRORS as error:
        raise fail(str(error) if lost is None else f"{lost}; and then: {error}") from None
    if lost is not None:
        raise fail(str(lost))


def _undo(stack: LocalStack) -> None:
    try:
        stack.undo(say_progress)
    except LAUNCH_ERRORS as error:
        raise fail(f"not everything was taken down: {error}") from None


def make_replica_table(replicas: Sequence[ReplicaStatus]) -> Table:
    """What replicas do now."""
    table = Table("replica", "model", "state", title="Replicas (requests in their engines)", title_justify="left")
    for name in ("window", "offline", "online", "waiting", "KV use"):
        table.add_column(name, justify="right")
    for replica in replicas:
        table.add_row(
            escape(replica.replica_id),
            escape(replica.model),
            replica.state + (" (alone)" if replica.alone else ""),
            str(replica.window),
            str(replica.offline_running),
            str(replica.online_running),
            str(replica.online_waiting),
            f"{replica.kv_usage:.0%}",
        )
    return table


def make_batch_table(batches: Sequence[BatchStatusLine]) -> Table:
    """How far batches are."""
    table = Table("batch", "status", title="Batches that have not ended", title_justify="left")
    for name in ("total", "completed", "failed", "waiting", "running"):
        table.add_column(name, justify="right")
    for batch in batches:
        counts = (batch.total, batch.completed, batch.failed, batch.ready, batch.leased)
        status = batch.status + (" (paused)" if batch.paused else "")
        table.add_row(batch.id, status, *map(str, counts))
    return table
