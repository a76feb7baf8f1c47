"""`python -m loadtests.demo`: brings ConServe up, shows what it harvests beside interactive chat, and stops it again.

Exit code 0 after a success, 1 when something failed, 2 for a wrong option, 130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.text import Text

from conserve.config import SettingsError
from conserve.launch.interruption import Interruption
from conserve.telemetry.logs import configure_program_logs

STARTING = "Bringing the application up"
INTERRUPTED = 130
# Emptied before each run, so its name is one that nobody else gives.
STATE_FOLDER = ".demo-state"


class RunningApplication(Protocol):
    """Where an application that was brought up is reached, and where its logs are."""

    @property
    def base_url(self) -> str: ...
    @property
    def dashboard_url(self) -> str: ...
    @property
    def log_dir(self) -> Path: ...


class Stack(Protocol):
    """Something that brings an application up and stops all of it again, `conserve.launch.stack.LocalStack` say."""

    def up(self, on_progress: Callable[[str], None]) -> RunningApplication: ...
    def down(self) -> object: ...


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
    stack: Stack | None = None
    with Interruption() as interruption:
        try:
            try:
                stack = _make(make_stack) if make_stack is not None else None
                code = _run(options, stack, console, interruption)
            finally:
                # A signal that raises before this line disarms the handler itself; so none can stop what follows.
                interruption.disarm()
        except KeyboardInterrupt:
            code = INTERRUPTED
        except (SettingsError, _StackUnusableError) as error:
            _say(console, f"{error}", style="bold red")
            code = 1
        finally:
            console.show_cursor()
            is_down = True
            if stack is not None:
                _say(console, "Interrupted: stopping everything ..." if interruption.requested else "Stopping ...")
                is_down = _take_down(stack, console)
            if interruption.requested:
                is_empty = stack is not None and is_down
                _say(console, "Interrupted. Nothing is left running." if is_empty else "Interrupted.")
    return code if is_down else 1


class _StackUnusableError(RuntimeError):
    """There is no stack to bring up. The message says why."""


def _launch_errors() -> tuple[type[Exception], ...]:
    from conserve.jobs.errors import EmbeddedServerError
    from conserve.launch.ray_head import RayHeadError
    from conserve.launch.record import StackError
    from conserve.launch.serve_api import ServeApiError

    return StackError, ServeApiError, EmbeddedServerError, RayHeadError, OSError


def _make(make_stack: Callable[[], Stack]) -> Stack:
    try:
        return make_stack()
    except _launch_errors() as error:
        raise _StackUnusableError(f"The application cannot be brought up: {error}") from error


def _take_down(stack: Stack, console: Console) -> bool:
    try:
        stack.down()
    except _launch_errors() as error:
        _say(console, f"Not everything was stopped: {error}", style="bold red")
        return False
    return True


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
        _say(console, f"{error}", style="bold red")
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
                running = _bring_up(stack, display.announce)
                base_url, logs = running.base_url, f" Logs: {running.log_dir}"
            result = interruption.run(Demonstration(plan, base_url, view, display).run())
    except (DemoError, OpenAIError, BatchFileError) as error:
        _say(console, f"The demonstration failed: {error}.{logs}", style="bold red")
        return 1
    print_result(console, result.report, result.samples)
    for path in result.files:
        _say(console, f"{path}")
    for problem in result.problems:
        _say(console, f"Failed: {problem}.{logs}", style="bold red")
    return 1 if result.problems else 0


def _bring_up(stack: Stack, announce: Callable[[str], None]) -> RunningApplication:
    from loadtests.demonstration import DemoError

    try:
        return stack.up(announce)
    # Servers, clusters and engines are started here; what they raise is theirs, what went wrong is for the user.
    except Exception as error:
        raise DemoError(f"the application did not come up: {error}") from error


def _clear_folder(out: Path) -> None:
    """Makes the folder and takes away the files of an earlier demonstration, which would pass for this one's."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("input.jsonl", "output.jsonl", "errors.jsonl", "summary.json"):
        (out / name).unlink(missing_ok=True)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def _make_local_stack(config: Path, state_dir: Path) -> Stack:
    """A stack with a fresh state: a batch left in the queue by an earlier run would be worked off in this one."""
    from conserve.launch.ports import find_free_ports, is_free
    from conserve.launch.stack import LocalStack

    stack = LocalStack(config, state_dir, os.environ)
    if state_dir.exists():
        # What a killed run left running is found through its state, so it goes before the state does.
        stack.down()
        shutil.rmtree(state_dir)
    if is_free(stack.config.http_port, stack.config.http_host):
        return stack
    # An application of the user's own may run on the usual port.
    return LocalStack(config, state_dir, os.environ, http_port=find_free_ports(1)[0])


@contextlib.contextmanager
def _hold_folder(out: Path) -> Iterator[None]:
    """Keeps a second demonstration out of the folder: it would take the first one's application for a leftover."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise typer.BadParameter(f"another demonstration is running in {out}", param_hint="--out") from None
        yield


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
    make_stack = None if base_url is not None else functools.partial(_make_local_stack, config, out / STATE_FOLDER)
    with _hold_folder(out):
        raise typer.Exit(conduct(options, make_stack, Console(highlight=False)))


if __name__ == "__main__":
    typer.run(main)
