"""`python -m loadtests.chaos`: faults of every kind while chats and batches run, and a check of what became of them.

Faults are drawn with a seed and come one after the other, each once all is well again after the one before. Exits
with 1 where a request was lost, answered twice or wrongly, or not at all, or where an online request failed that no
killed process held.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from conserve.telemetry.logs import configure_program_logs
from loadtests.chaos.engines import CLIENTS, REQUESTS, EngineName, make_stack
from loadtests.chaos.report import ChaosReport, FaultRecord, render
from loadtests.chaos.run import ChaosRun
from loadtests.chaos.schedule import FaultType
from loadtests.chaos.stack import Stack
from loadtests.interruptible import run_interruptible
from loadtests.report import describe_machine

DEFAULT_MINUTES: Final = 60.0


def main(
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 1,
    faults: Annotated[int | None, typer.Option(min=1, help="How many; by default `--minutes` says.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="For how long; 60 without `--faults`.")] = None,
    engine: Annotated[EngineName, typer.Option(help="A light one, or vLLM.")] = EngineName.LIGHT,
    replicas: Annotated[int, typer.Option(min=2, max=16, help="Engines.")] = 2,
    only: Annotated[
        list[str] | None, typer.Option(help="Only faults whose name has this in it; may be given several times.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for chaos.json and chaos.md.")] = Path("out/chaos"),
) -> None:
    """Prints what each type of fault has cost; exits with 1 if a contract did not hold."""
    configure_program_logs()
    with tempfile.TemporaryDirectory(prefix="conserve-chaos-", ignore_cleanup_errors=True) as name:
        stack = make_stack(engine, Path(name), replicas, seed)
        run = ChaosRun(
            stack,
            engine,
            seed,
            choose_faults(stack, only),
            most=faults,
            minutes=minutes or (DEFAULT_MINUTES if faults is None else None),
            clients=CLIENTS[engine],
            requests=REQUESTS[engine],
            on_fault=show_fault,
        )
        report = run_interruptible(run.run())
    typer.echo(render(report))
    write_report(report, out)
    if not report.is_clean:
        raise typer.Exit(1)


def show_fault(record: FaultRecord) -> None:
    """Prints that a fault is over."""
    back = "not well again in time" if record.well_s is None else f"all well {record.well_s:.1f} s later"
    typer.echo(f"{record.at_s:7.1f} s  {record.name} for {record.hold_s:.1f} s, {back}", err=True)


def choose_faults(stack: Stack, only: list[str] | None) -> list[FaultType]:
    """The faults of a stack whose names have one of some texts in them.

    Raises:
        typer.BadParameter: none has.
    """
    chosen = [fault for fault in stack.faults if not only or any(part in fault.name for part in only)]
    if not chosen:
        names = ", ".join(fault.name for fault in stack.faults)
        raise typer.BadParameter(f"no fault is called so; there are: {names}", param_hint="--only")
    return chosen


def write_report(report: ChaosReport, folder: Path) -> None:
    """Writes both files."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"machine": describe_machine(), **report.model_dump(mode="json")}
    (folder / "chaos.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "chaos.md").write_text(render(report), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
