"""`python -m loadtests.demo`: brings ConServe up, shows what it harvests beside interactive chat, and stops it again.

Exit code 0 after a success, 1 when something failed, 2 for a wrong option, 130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from conserve.launch.interruption import Interruption
from conserve.telemetry.logs import configure_program_logs
from loadtests.supervision import (
    BringUpError,
    RunningApplication,
    Stack,
    bring_up,
    hold_folder,
    make_local_stack,
    say,
    supervise,
)

__all__ = ["DemoOptions", "RunningApplication", "conduct"]

STARTING = "Bringing the application up"
# Emptied before each run, so its name is one that nobody else gives.
STATE_FOLDER = ".demo-state"


@dataclass(frozen=True)
class DemoOptions:
    """The command line; see `main`."""

    out: Path
    documents: Path | None = None
    base_url: str | None = None
    requests: int = 120
    alone_s: float = 60.0
    chat_rate_per_s: float = 0.7
    batch_limit_s: float = 300.0
    poll_s: float = 1.0


def conduct(options: DemoOptions, make_stack: Callable[[], Stack] | None, console: Console) -> int:
    """Runs the demonstration and returns the exit code. Whatever happens, the stack's `down` runs, and to its end.

    Args:
        options: `base_url` is used where `make_stack` is None.
        make_stack: Makes what is to be brought up and stopped; None for an application that runs already.
        console: Everything is printed here.
    """
    return supervise(make_stack, console, lambda stack, interruption: _run(options, stack, console, interruption))


def _run(options: DemoOptions, stack: Stack | None, console: Console, interruption: Interruption) -> int:
    # Imported here, under the signal handlers: the clients and numpy take over a second to load.
    from openai import OpenAIError

    from loadtests.batch_file import BatchFileError
    from loadtests.demo_table import print_result
    from loadtests.demonstration import DemoError, Demonstration, DemoPlan
    from loadtests.display import DemoDisplay, DemoView
    from loadtests.documents import DocumentsError, read_documents

    try:
        documents = read_documents(options.documents)
        _clear_folder(options.out)
    except (DocumentsError, OSError) as error:
        say(console, f"{error}", style="bold red")
        return 1
    plan = DemoPlan(
        documents=documents,
        out=options.out,
        requests=options.requests,
        alone_s=options.alone_s,
        chat_rate_per_s=options.chat_rate_per_s,
        batch_limit_s=options.batch_limit_s,
        poll_s=options.poll_s,
    )
    view = DemoView()
    logs: str = ""
    try:
        with DemoDisplay(console, view) as display:
            base_url = options.base_url or ""
            if stack is not None:
                display.begin(STARTING)
                running = bring_up(stack, display.announce)
                base_url, logs = running.base_url, f" Logs: {running.log_dir}"
            result = interruption.run(Demonstration(plan, base_url, view, display).run())
    except (BringUpError, DemoError, OpenAIError, BatchFileError) as error:
        say(console, f"The demonstration failed: {error}.{logs}", style="bold red")
        return 1
    print_result(console, result.report, result.samples)
    for path in result.files:
        say(console, f"{path}")
    for problem in result.problems:
        say(console, f"Failed: {problem}.{logs}", style="bold red")
    return 1 if result.problems else 0


def _clear_folder(out: Path) -> None:
    """Makes the folder and takes away the files of an earlier demonstration, which would pass for this one's."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("input.jsonl", "output.jsonl", "errors.jsonl", "summary.json"):
        (out / name).unlink(missing_ok=True)


def main(
    documents: Annotated[
        Path | None,
        typer.Option(help="Folder of .txt and .md files; by default the descriptions of installed distributions."),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of the batch.")] = 120,
    alone_s: Annotated[float, typer.Option(min=1, help="Seconds of chat before the batch is created.")] = 60.0,
    chat_rate: Annotated[float, typer.Option(min=0.01, max=1_000, help="Chats a second, on average.")] = 0.7,
    batch_limit_s: Annotated[float, typer.Option(min=1, help="The batch is cancelled after so long.")] = 300.0,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/demo"),
    base_url: Annotated[
        str | None, typer.Option(help="An application that runs already, such as http://127.0.0.1:8000.")
    ] = None,
    config: Annotated[
        Path, typer.Option(envvar="CONSERVE_CONFIG", help="What to bring up, where --base-url is not given.")
    ] = Path("serve_config.yaml"),
) -> None:
    """Interactive chat alone, then beside a batch of summaries on the same engine: what is harvested, what it costs."""
    configure_program_logs()
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise typer.BadParameter("must start with http:// or https://", param_hint="--base-url")
    options = DemoOptions(
        out=out,
        documents=documents,
        base_url=base_url,
        requests=requests,
        alone_s=alone_s,
        chat_rate_per_s=chat_rate,
        batch_limit_s=batch_limit_s,
    )
    make_stack = None if base_url is not None else functools.partial(make_local_stack, config, out / STATE_FOLDER)
    with hold_folder(out):
        raise typer.Exit(conduct(options, make_stack, Console(highlight=False)))


if __name__ == "__main__":
    typer.run(main)
