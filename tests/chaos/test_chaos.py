"""A few faults of different kinds in a small cluster; `make chaos` injects hundreds of all kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from conserve.launch.processes import STACK_ID_VARIABLE, find_processes

ROOT = Path(__file__).parents[2]
LIMIT_S = 540
FAULTS = ("SIGKILL replica", "SIGKILL redis", "SIGSTOP controller", "storage read-only", "packets dropped")


@pytest.mark.timeout(600)
def test_contracts_hold_while_things_go_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.chaos", "--seed", "1", "--faults", str(len(FAULTS))]
    command += ["--out", str(tmp_path), *(part for fault in FAULTS for part in ("--only", fault))]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), STACK_ID_VARIABLE: (mark := uuid.uuid4().hex)}
    # In a process of its own: Ray reads its environment when it is imported.
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (tmp_path / "chaos.json").exists(), done.stdout + done.stderr
    report = json.loads((tmp_path / "chaos.json").read_text())
    assert report["problems"] == []
    assert report["not_injected"] == []
    assert sorted(fault["name"] for fault in report["faults"]) == sorted(FAULTS)
    assert report["requests"] > 0
    assert report["chats"] > 0
    assert "All contracts held." in (tmp_path / "chaos.md").read_text()
    assert done.returncode == 0
    assert find_processes(mark) == []
    assert "conserve-chaos" not in Path("/proc/mounts").read_text()
