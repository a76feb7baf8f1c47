"""Compiles the modules that a simulation spends its time in; see `compiled`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from conserve.simulator.compiled import MODULES, SOURCES, find_build

TIMEOUT_S: Final = 1_200
_SHOWN_LINES: Final = 5
_NO_SOURCES: Final = shutil.ignore_patterns("__pycache__", "*.so")


class CompileError(Exception):
    """The modules could not be compiled. The message says why."""


def compile_modules(folder: Path, optimization: int = 3) -> Path:
    """Compiles the present sources, which takes a minute or two, and removes what was made from others.

    Args:
        folder: Where to put the result, in a folder of its own.
        optimization: Level of the C compiler, 0 to 3.

    Returns:
        The folder of the result; the one that is there already if nothing has changed.

    Raises:
        CompileError: mypy or the C compiler is missing, or does not do it; `folder` cannot be written.
    """
    build = find_build(folder)
    if build.is_dir():
        return build
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="making-") as temporary:
            work, made = Path(temporary, "work"), Path(temporary, "made")
            shutil.copytree(SOURCES / "conserve", work / "conserve", ignore=_NO_SOURCES)
            _run_mypyc(work, optimization)
            for library in work.glob("conserve/**/*.so"):
                target = made / library.relative_to(work)
                target.parent.mkdir(parents=True, exist_ok=True)
                library.rename(target)
            for library in work.glob("*.so"):
                library.rename(made / library.name)
            for old in folder.iterdir():
                if not old.name.startswith("making-"):
                    shutil.rmtree(old, ignore_errors=True)
            made.rename(build)
    except OSError as error:
        if build.is_dir():  # Somebody else was faster.
            return build
        raise CompileError(f"{folder} cannot be written: {error.strerror}") from None
    return build


def _run_mypyc(work: Path, optimization: int) -> None:
    files = [f"{name.replace('.', '/')}.py" for name in MODULES]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mypyc", "--follow-imports=silent", "--python-version", version, *files],
            cwd=work,
            env={**os.environ, "MYPYC_OPT_LEVEL": str(optimization), "MYPYC_DEBUG_LEVEL": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CompileError(f"it was not done after {TIMEOUT_S} s") from None
    if done.returncode:
        if "No module named mypyc" in done.stdout:
            raise CompileError("mypy is not installed; it comes with `make setup`, or with conserve[dev]")
        raise CompileError("\n".join(done.stdout.strip().splitlines()[-_SHOWN_LINES:]))
