"""`conserve grafana`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from conserve.cli.console import JsonOption, fail, say_progress, show_json
from conserve.launch.grafana import DASHBOARDS, GrafanaError, GrafanaInstaller, read_dashboards

app = typer.Typer(help="Dashboards for Grafana.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Dashboards for Grafana."""


@app.command()
def install(
    url: Annotated[
        str, typer.Option("--url", envvar="GRAFANA_URL", help="Of Grafana, such as http://grafana:3000.", metavar="URL")
    ],
    token: Annotated[
        str,
        typer.Option(
            "--token", envvar="GRAFANA_TOKEN", help="Of a service account with the role Admin.", metavar="TOKEN"
        ),
    ],
    prometheus: Annotated[
        str | None,
        typer.Option(
            "--prometheus",
            help="Where Grafana reaches Prometheus; without it, dashboards use a data source that is there.",
            metavar="URL",
        ),
    ] = None,
    dashboards: Annotated[
        Path | None,
        typer.Option(
            "--dashboards",
            help="Folder of the dashboards; by default `cluster/grafana` beside the code.",
            metavar="FOLDER",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Puts folder, data source and dashboards into a Grafana; again, it brings them up to date."""
    try:
        installer = GrafanaInstaller(url, token, say_progress)
        parts = installer.install(read_dashboards(dashboards or DASHBOARDS), prometheus)
    except GrafanaError as error:
        raise fail(str(error)) from None
    if as_json:
        show_json([asdict(part) for part in parts])
