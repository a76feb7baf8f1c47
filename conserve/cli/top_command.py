"""`conserve top`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from conserve.cli.console import (
    PATIENT_RETRIES,
    JsonOption,
    UrlOption,
    open_client,
    out,
)
from conserve.cli.top_rates import Rates
from conserve.client import Client, ClusterStatus
from conserve.client.async_client import DEFAULT_URL

_BAR_WIDTH = 10
_PLAIN: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0), "header_style": "bold", "title_justify": "left"}
_MOST_BATCHES = 15


def top(
    url: UrlOption = DEFAULT_URL,
    period_s: Annotated[float, typer.Option("--period", help="Seconds between two looks.", min=0.2, max=3_600)] = 1.0,
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="Looks, after which it ends; by default until Ctrl-C.", min=1)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Shows replicas and batches live. Where there is no terminal a line for each look; with --json, one of JSON."""
    with suppress(KeyboardInterrupt), open_client(url, PATIENT_RETRIES) as client:  # Ctrl-C is how one leaves it.
        looks = _look(client, period_s, count)
        if as_json:
            for status, _ in looks:
                typer.echo(status.model_dump_json())
        elif not out.is_terminal:
            for status, rates in looks:
                typer.echo(describe(status, rates))
        else:
            with Live(console=out, auto_refresh=False) as live:
                for status, rates in looks:
                    live.update(_draw(status, rates, url), refresh=True)


def _look(client: Client, period_s: float, count: int | None) -> Iterator[tuple[ClusterStatus, Rates]]:
    rates = Rates()
    number = 0
    while True:
        status = client.status()
        rates.take(status, time.monotonic())
        yield status, rates
        number += 1
        if number == count:
            return
        time.sleep(period_s)


def describe(status: ClusterStatus, rates: Rates) -> str:
    """One line, for logs and other programs."""
    replicas = status.replicas
    states = ", ".join(
        f"{sum(one.state == state for one in replicas)} {state}" for state in sorted({one.state for one in replicas})
    )
    usage = max((one.kv_usage for one in replicas), default=0.0)
    done = sum(batch.completed + batch.failed for batch in status.batches)
    total = sum(batch.total for batch in status.batches)
    return (
        f"{datetime.now().astimezone():%H:%M:%S} replicas: {states or 'none'}; "
        f"online: {sum(one.online_running for one in replicas)} running, "
        f"{sum(one.online_waiting for one in replicas)} waiting; "
        f"offline: {sum(one.offline_running for one in replicas)} of {sum(one.window for one in replicas)}, "
        f"{_name_rate(rates.total_per_s())} tok/s; KV: {usage:.0%}; "
        f"batches: {len(status.batches)}, {done} of {total} requests; flex: {status.flex_waiting} waiting"
    )


def _draw(status: ClusterStatus, rates: Rates, url: str) -> RenderableType:
    head = (
        f"[bold]{escape(url)}[/]  {datetime.now().astimezone():%H:%M:%S}  "
        f"offline {_name_rate(rates.total_per_s())} tok/s  flex waiting {status.flex_waiting}  [dim]Ctrl-C ends[/]"
    )
    parts: list[RenderableType] = [head]
    if status.controller_elsewhere:
        parts.append("[yellow]The controller of another cluster is at work in this namespace.[/]")
    parts += ["", _draw_replicas(status, rates), ""]
    if status.batches:
        parts.append(_draw_batches(status))
    else:
        parts.append("[dim]No batch is under way.[/]")
    return Group(*parts)


def _draw_replicas(status: ClusterStatus, rates: Rates) -> RenderableType:
    if not status.replicas:
        return "[yellow]No replica reports.[/]"
    table = Table("replica", "state", title="Replicas", **_PLAIN)
    table.add_column("online", justify="right")
    table.add_column("in time", justify="right")
    table.add_column("offline of window", justify="right")
    table.add_column("")
    table.add_column("tok/s", justify="right")
    table.add_column("KV", justify="right")
    table.add_column("")
    for one in status.replicas:
        waiting = f" +{one.online_waiting}" if one.online_waiting else ""
        table.add_row(
            escape(one.replica_id),
            ("[green]" if one.state == "serving" else "[yellow]")
            + one.state
            + "[/]"
            + (" (alone)" if one.alone else ""),
            f"{one.online_running}{waiting}",
            "-" if one.slo_attainment is None else f"{one.slo_attainment:.0%}",
            f"{one.offline_running} / {one.window}",
            ProgressBar(total=max(1, one.window), completed=one.offline_running, width=_BAR_WIDTH),
            _name_rate(rates.tokens_per_s(one.replica_id)),
            f"{one.kv_usage:.0%}",
            ProgressBar(total=1.0, completed=one.kv_usage, width=_BAR_WIDTH),
        )
    return table


def _draw_batches(status: ClusterStatus) -> RenderableType:
    table = Table(title="Batches that have not ended", **_PLAIN)
    table.add_column("batch", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("")
    for name in ("done", "running", "ends in"):
        table.add_column(name, justify="right", no_wrap=True)
    for batch in status.batches[:_MOST_BATCHES]:
        done = batch.completed + batch.failed
        left_s = None if batch.expires_at is None else batch.expires_at - time.time()
        table.add_row(
            batch.id,
            batch.status + (" (paused)" if batch.paused else ""),
            ProgressBar(total=max(1, batch.total), completed=done, width=_BAR_WIDTH),
            f"{done:,} / {batch.total:,}" + (f", [red]{batch.failed:,} failed[/]" if batch.failed else ""),
            f"{batch.leased:,}",
            _name_duration(left_s),
        )
    left = len(status.batches) - _MOST_BATCHES
    if left > 0:
        table.caption = f"and {left} more"
    return table


def _name_duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes = max(0, int(seconds) // 60)
    return f"{minutes // 1440}d {minutes // 60 % 24}h" if minutes >= 1440 else f"{minutes // 60}h {minutes % 60:02}m"


def _name_rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}"
