"""Every shell command of README and docs is run by a test, or it is said why not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from conserve.models import cache_folder
from tests.documented_commands import COMMANDS, ROOT, ByTest, Here, NotRun, list_blocks, list_commands

COMMANDS_OF_PAGES = list_commands()
BINARIES = Path(sys.executable).parent
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:{minute:02}:{second:02}.0000000,500,40\n" for minute in range(2) for second in range(60)
)


def test_every_block_says_what_it_is() -> None:
    languages = Counter(block.language for block in list_blocks())
    assert set(languages) <= {"bash", "python", "yaml", "json", "text"}, languages


def test_every_command_is_accounted_for() -> None:
    assert set(COMMANDS_OF_PAGES) - set(COMMANDS) == set(), "say in tests/documented_commands.py what is done about it"
    assert set(COMMANDS) - set(COMMANDS_OF_PAGES) == set(), "no page has it any more"


def test_the_tests_that_are_named_are_there() -> None:
    for treatment in COMMANDS.values():
        if isinstance(treatment, ByTest):
            path, _, name = treatment.by.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(), treatment


def test_what_is_not_run_is_little() -> None:
    reasons = Counter(one.because for one in COMMANDS.values() if isinstance(one, NotRun))
    assert len(reasons) <= 10
    assert not [reason for reason in reasons if len(reason) < 15]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name.startswith("make ")])
def test_make_knows_its_targets_and_variables(name: str) -> None:
    planned = subprocess.run(
        ["bash", "-c", name.replace("make ", "make --dry-run ", 1)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert planned.returncode == 0, planned.stderr
    for word in name.replace('"', " ").split()[2:]:
        assert word.rpartition("=")[2] in planned.stdout


@pytest.mark.parametrize("name", [name for name, one in COMMANDS.items() if isinstance(one, Here)])
def test_it_runs(name: str, tmp_path: Path) -> None:
    treatment = COMMANDS[name]
    assert isinstance(treatment, Here)
    for wanted in ("AzureLLMInferenceTrace_code.csv", "AzureLLMInferenceTrace_conv.csv"):
        (tmp_path / wanted).write_text(TRACE)
    (tmp_path / "serve_config.yaml").write_text((ROOT / "serve_config.yaml").read_text())
    kept = {variable: value for variable, value in os.environ.items() if not variable.startswith("CONSERVE_")}
    environ = kept | {
        "PATH": f"{BINARIES}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CONSERVE_CACHE": str(cache_folder()),
        "CONSERVE_STATE_DIR": str(tmp_path / "state"),
    }
    command = f"{COMMANDS_OF_PAGES[name].replace('.venv/bin/', '')} {treatment.shorter}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
