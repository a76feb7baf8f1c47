"""A stack that cannot be made or stopped ends the demonstration with one line."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from conserve.config import SettingsError
from conserve.jobs.errors import EmbeddedServerError
from conserve.launch.ray_head import RayHeadError
from conserve.launch.record import StackError
from conserve.launch.serve_api import ServeApiError
from loadtests.demo import DemoOptions, RunningApplication, conduct


class BrokenStack:
    """Does not come up, and goes down as told."""

    def __init__(self, up_error: BaseException, down_error: Exception | None) -> None:
        self.up_error, self.down_error, self.downs = up_error, down_error, 0

    def up(self, on_progress: Callable[[str], None]) -> RunningApplication:
        raise self.up_error

    def down(self) -> None:
        self.downs += 1
        if self.down_error is not None:
            raise self.down_error


def conduct_with(make_stack: Callable[[], BrokenStack], out: Path) -> tuple[int, str]:
    printed = io.StringIO()
    code = conduct(DemoOptions(out=out), make_stack, Console(file=printed, width=200))
    return code, printed.getvalue()


@pytest.mark.parametrize("kind", [SettingsError, StackError, ServeApiError, EmbeddedServerError, RayHeadError, OSError])
def test_stack_that_cannot_be_made_is_one_line(kind: type[Exception], tmp_path: Path) -> None:
    def make_stack() -> BrokenStack:
        raise kind("no [luck]")

    code, printed = conduct_with(make_stack, tmp_path)
    assert code == 1
    lines = [line for line in printed.splitlines() if line.strip("\x1b[?25h ")]
    assert len(lines) == 1
    assert "no [luck]" in lines[0]


def test_mistakes_of_the_program_are_not_hidden(tmp_path: Path) -> None:
    def make_stack() -> BrokenStack:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        conduct_with(make_stack, tmp_path)


@pytest.mark.parametrize("up_error", [StackError("no luck"), KeyboardInterrupt()])
def test_stack_that_does_not_stop_is_said_so(up_error: BaseException, tmp_path: Path) -> None:
    stack = BrokenStack(up_error, EmbeddedServerError("pid 7 stays"))
    code, printed = conduct_with(lambda: stack, tmp_path)
    assert (code, stack.downs) == (1, 1)
    assert "Not everything was stopped: pid 7 stays" in printed
    assert "Nothing is left running" not in printed


def test_interruption_keeps_its_exit_code_when_all_is_stopped(tmp_path: Path) -> None:
    stack = BrokenStack(KeyboardInterrupt(), None)
    code, _ = conduct_with(lambda: stack, tmp_path)
    assert (code, stack.downs) == (130, 1)
