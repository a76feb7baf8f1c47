"""Programs that bring an application up, work with it, and stop all of it again whatever happens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

import typer
from rich.console import Console
from rich.text import Text

from conserve.config import SettingsError
from conserve.launch.interruption import Interruption

INTERRUPTED: Final = 130
TAKE_ALL: Final = "CONSERVE_OVERLOAD__REFUSE"


class RunningApplication(Protocol):
    """Where an application that was brought up is reached, over HTTP and over gRPC if it has it, and its logs."""

    @property
    def base_url(self) -> str: ...
    @property
    def grpc_address(self) -> str | None: ...
    @property
    def dashboard_url(self) -> str: ...
    @property
    def log_dir(self) -> Path: ...


class Stack(Protocol):
    """Something that brings an application up and stops all of it again, `conserve.launch.stack.LocalStack` say."""

    def up(self, on_progress: Callable[[str], None]) -> RunningApplication: ...
    def down(self) -> object: ...


def supervise(
    make_stack: Callable[[], Stack] | None, console: Console, work: Callable[[Stack | None, Interruption], int]
) -> int:
    """Runs `work` and returns its exit code, or 130 after a signal. Whatever happens, the stack is taken down.

    Args:
        make_stack: Makes what is to be brought up and stopped; None for an application that runs already.
        console: Everything is printed here.
        work: Gets the stack, which it brings up with `bring_up`.
    """
    stack: Stack | None = None
    with Interruption() as interruption:
        try:
            try:
                stack = _make(make_stack) if make_stack is not None else None
                code = work(stack, interruption)
            finally:
                # A signal that raises before this line disarms the handler itself; so none can stop what follows.
                interruption.disarm()
        except KeyboardInterrupt:
            code = INTERRUPTED
        except (SettingsError, _StackUnusableError) as error:
            say(console, f"{error}", style="bold red")
            code = 1
        finally:
            console.show_cursor()
            is_down = True
            if stack is not None:
                say(console, "Interrupted: stopping everything ..." if interruption.requested else "Stopping ...")
                is_down = _take_down(stack, console)
            if interruption.requested:
                is_empty = stack is not None and is_down
                say(console, "Interrupted. Nothing is left running." if is_empty else "Interrupted.")
    return code if is_down else 1


class BringUpError(RuntimeError):
    """The application did not come up; the message says why."""


def bring_up(stack: Stack, announce: Callable[[str], None]) -> RunningApplication:
    """Brings the application up. Raises `BringUpError`."""
    try:
        return stack.up(announce)
    # Servers, clusters and engines are started here; what they raise is theirs, what went wrong is for the user.
    except Exception as error:
        raise BringUpError(f"the application did not come up: {error}") from error


def make_local_stack(config: Path, state_dir: Path, environ: Mapping[str, str] | None = None) -> Stack:
    """A stack with a fresh state: a batch left in the queue by an earlier run would be worked off in this one.

    It takes in all online requests, unless the environment says otherwise: what comes late is to be seen to be late.
    """
    environ = {TAKE_ALL: "false", **(os.environ if environ is None else environ)}
    from conserve.launch.ports import find_free_ports, is_free
    from conserve.launch.stack import LocalStack

    stack = LocalStack(config, state_dir, environ)
    if state_dir.exists():
        # What a killed run left running is found through its state, so it goes before the state does.
        stack.down()
        shutil.rmtree(state_dir)
    ports = [port for port in (stack.config.http_port, stack.config.grpc_port) if port is not None]
    if all(is_free(port, stack.config.http_host) for port in ports):
        return stack
    # An application of the user's own may run on the usual ports.
    http_port, grpc_port = find_free_ports(2)
    return LocalStack(
        config, state_dir, environ, http_port=http_port, grpc_port=grpc_port if stack.config.grpc_port else None
    )


@contextlib.contextmanager
def hold_folder(out: Path) -> Iterator[None]:
    """Keeps a second run out of the folder: it would take the first one's application for a leftover.

    Raises:
        typer.BadParameter: another one is running.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise typer.BadParameter(f"another run is going on in {out}", param_hint="--out") from None
        yield


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
        say(console, f"Not everything was stopped: {error}", style="bold red")
        return False
    return True


def say(console: Console, text: str, style: str = "") -> None:
    """Prints one line, however long it is."""
    console.print(Text(text, style=style), soft_wrap=True)
