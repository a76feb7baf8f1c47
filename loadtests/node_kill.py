"""`python -m loadtests.node_kill`: what dies in a cluster of several nodes, and what that costs.

Nodes with one light engine each, a head with Serve's proxy and controller, online clients, and batches, of which there
are always enough. Everything but the engine and the front is what runs in the application. One thing after the other is
killed with SIGKILL; then the batches are waited for, and each of their requests must have exactly one right answer.
Exits with 1 if not, or if online requests have failed that no killed process held.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from conserve.telemetry.logs import configure_program_logs
from loadtests.interruptible import run_interruptible
from loadtests.killing.node_report import Blow, render
from loadtests.killing.node_run import NodeKillRun
from loadtests.report import describe_machine


def main(
    kill: Annotated[list[Blow] | None, typer.Option(help="What, in this order; by default all of it.")] = None,
    engines: Annotated[int, typer.Option(min=2, max=16, help="One on each node.")] = 3,
    watch_s: Annotated[float, typer.Option(min=3, help="So long each blow is watched.")] = 30.0,
    clients: Annotated[int, typer.Option(min=1, max=64, help="Online ones.")] = 8,
    lease_ms: Annotated[int, typer.Option(min=1_000, help="Of offline requests.")] = 15_000,
    scale_in: Annotated[bool, typer.Option("--scale-in", help="Replicas are told to go, too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for node-kills.json.")] = None,
) -> None:
    """Prints what each blow has cost; exits with 1 if it was more than may be."""
    configure_program_logs()
    with tempfile.TemporaryDirectory(prefix="conserve-nodes-") as name:
        run = NodeKillRun(Path(name), kill or list(Blow), engines, watch_s, clients, lease_ms, scale_in=scale_in)
        report = run_interruptible(run.run())
    console = Console(highlight=False)
    console.print(render(report))
    for one in report.consequences:
        for reason in one.online_reasons:
            console.print(f"{one.blow}: {reason}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"machine": describe_machine(), **report.model_dump(mode="json")}
        (out / "node-kills.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if not report.is_clean:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
