"""`conserve compile`."""

from __future__ import annotations

import time

from conserve.cli.console import err, fail, say_progress
from conserve.models import compiled_dir
from conserve.simulator.compiled import find_build
from conserve.simulator.compiling import CompileError, compile_modules


def compile_simulator() -> None:
    """Compiles the simulator, so that `simulate` and `plan` take less than half the time; needs a C compiler."""
    folder = compiled_dir()
    if find_build(folder).is_dir():
        say_progress("compiled already")
        return
    began_s = time.monotonic()
    try:
        with err.status("compiling, which takes a minute or two"):
            compile_modules(folder)
    except CompileError as error:
        raise fail(f"the simulator is not compiled: {error}") from None
    say_progress(f"compiled in {time.monotonic() - began_s:.0f} s")
