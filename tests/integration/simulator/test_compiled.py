"""The simulator's compiled modules: really compiled, used by programs of their own, and compared with the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conserve.simulator import compiled
from conserve.simulator.compiled import MODULES, find_build, use_compiled
from conserve.simulator.compiling import CompileError, compile_modules

SIMULATION = """
import sys
from pathlib import Path
from conserve.simulator.compiled import MODULES, use_compiled
print(use_compiled(Path(sys.argv[1])))
from loadtests.simulated_hour import measure
measure(["--replicas", "6", "--profile", "h100/llama-3.1-8b", "--duration", "90", "--figures"])
print({name: Path(sys.modules[name].__file__).suffix for name in MODULES if name in sys.modules})
"""


def simulate(folder: Path) -> tuple[str, str, str]:
    """Whether compiled modules are used, the figures, and of what kind each module's file is."""
    done = subprocess.run(
        [sys.executable, "-c", SIMULATION, str(folder)], capture_output=True, text=True, timeout=250, check=True
    )
    used, figures, kinds = done.stdout.splitlines()
    return used, figures, kinds


@pytest.mark.timeout(900)
def test_compiled_modules_give_the_same_figures(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    (folder / "of-other-sources").mkdir(parents=True)
    build = compile_modules(folder, optimization=0)
    assert build == find_build(folder)
    assert [each.name for each in folder.iterdir()] == [build.name]  # nothing is left of other sources or of the work
    assert compile_modules(folder) == build  # at once: it is there

    used, figures, kinds = simulate(folder)
    assert used == "True"
    assert "'.py'" not in kinds
    unused, same_figures, other_kinds = simulate(tmp_path / "nothing")
    assert unused == "False"
    assert "'.so'" not in other_kinds
    assert figures == same_figures


def test_nothing_is_mixed_with_modules_that_are_there_already(tmp_path: Path) -> None:
    __import__(MODULES[0])
    find_build(tmp_path).mkdir()
    before = [*sys.path]
    assert not use_compiled(tmp_path)
    assert sys.path == before


def test_other_sources_have_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "policy"
    sources.mkdir()
    (sources / "__init__.py").write_text("", encoding="utf-8")
    (sources / "latency.py").write_text("A = 1\n", encoding="utf-8")

    class Package:
        __file__ = str(sources / "__init__.py")

    monkeypatch.setattr(compiled, "_PACKAGES", (Package,))
    before = find_build(tmp_path)
    (sources / "latency.py").write_text("A = 2\n", encoding="utf-8")
    assert find_build(tmp_path) != before


def test_says_why_it_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    Path(sys.executable).write_text("#!/bin/sh\necho No module named mypyc; exit 1\n", encoding="utf-8")
    Path(sys.executable).chmod(0o755)
    with pytest.raises(CompileError, match="mypy is not installed"):
        compile_modules(tmp_path / "compiled")
    assert [*(tmp_path / "compiled").iterdir()] == []


def test_says_that_the_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(CompileError, match="cannot be written"):
        compile_modules(tmp_path / "file" / "compiled")
