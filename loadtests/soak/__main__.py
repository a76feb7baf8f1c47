"""`python -m loadtests.soak`: an application under a load that changes for long, and a verdict on whatever grows.

Exits with 1 where something has grown more than it may, or a chat has failed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from conserve.telemetry.logs import configure_program_logs
from loadtests.chaos.engines import CLIENTS, REQUESTS, EngineName, make_stack
from loadtests.interruptible import run_interruptible
from loadtests.report import describe_machine
from loadtests.soak.page import HEADINGS, list_cells, write_page
from loadtests.soak.plots import write_plots
from loadtests.soak.report import SoakReport
from loadtests.soak.run import SoakRun
from loadtests.soak.sampling import Sample

WARM_UP_SHARE: Final = 1 / 3
LONGEST_WARM_UP_MINUTES: Final = 10.0


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long the load lasts after the warm-up.")] = 30.0,
    engine: Annotated[EngineName, typer.Option(help="A light one, or vLLM.")] = EngineName.LIGHT,
    replicas: Annotated[int, typer.Option(min=1, max=16, help="Engines.")] = 2,
    warm_up_minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Before; a third of `--minutes` by default, ten at most.")
    ] = None,
    period_s: Annotated[float, typer.Option(min=1.0, help="From one sample to the next.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for soak.json and soak.html.")] = Path("out/soak"),
) -> None:
    """Prints how much everything grows; exits with 1 if that is too much."""
    configure_program_logs()
    if warm_up_minutes is None:
        warm_up_minutes = min(WARM_UP_SHARE * minutes, LONGEST_WARM_UP_MINUTES)
    with tempfile.TemporaryDirectory(prefix="conserve-soak-", ignore_cleanup_errors=True) as name:
        run = SoakRun(
            make_stack(engine, Path(name), replicas, seed),
            engine,
            minutes=minutes + warm_up_minutes,
            warm_up_minutes=warm_up_minutes,
            period_s=period_s,
            clients=CLIENTS[engine],
            requests=REQUESTS[engine],
            seed=seed,
            on_sample=show_sample,
        )
        report = run_interruptible(run.run())
    write_report(report, out)
    console = Console(highlight=False)
    console.print(render(report))
    for problem in report.problems:
        console.print(problem)
    if report.problems:
        raise typer.Exit(1)


def show_sample(sample: Sample) -> None:
    """Prints a line."""
    typer.echo(f"{sample.at_s:7.0f} s  {sample.rss_mib:,.0f} MiB, {sample.clients} clients", err=True)


def render(report: SoakReport) -> Table:
    """The report as a table."""
    table = Table(title=f"Growth in half an hour, from {report.minutes - report.warm_up_minutes:.1f} minutes")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading else "left")
    for growth in report.growths:
        table.add_row(*list_cells(growth), style=None if growth.is_flat else "bold red")
    return table


def write_report(report: SoakReport, folder: Path) -> None:
    """Writes the figures, the plots, and the page with both."""
    machine = describe_machine()
    plots = write_plots(report.samples, 60 * report.warm_up_minutes, folder)
    content: dict[str, Any] = {"machine": machine, **report.model_dump(mode="json")}
    (folder / "soak.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_page(folder / "soak.html", report, plots, machine)


if __name__ == "__main__":
    typer.run(main)
