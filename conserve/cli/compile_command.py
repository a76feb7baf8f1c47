"""`conserve compile`."""

from __future__ import annotations

import time

from conserve.cli.console import JsonOption, err, fail, say_progress, show_json
from conserve.models import compiled_dir
from conserve.simulator.compiled import find_build
from conserve.simulator.compiling import CompileError, compile_modules


def compile_simulator(as_json: JsonOption = False) -> None:
    """Compiles the simulator, so that `simulate` and `plan` take less than half the time; needs a C compiler."""
    folder = compiled_dir()
    build = find_build(folder)
    duration_s = None
    if not build.is_dir():
        began_s = time.monotonic()
        try:
            with err.status("compiling, which takes a minute or two"):
                compile_modules(folder)
        except CompileError as error:
            raise fail(f"the simulator is not compiled: {error}") from None
        duration_s = time.monotonic() - began_s
    if as_json:
        show_json({"folder": str(build), "is_new": duration_s is not None, "duration_s": duration_s})
    else:
        say_progress("compiled already" if duration_s is None else f"compiled in {duration_s:.0f} s")
