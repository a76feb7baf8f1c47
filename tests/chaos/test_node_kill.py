"""An engine and a node die in a small cluster; the long run is a command (`python -m loadtests.node_kill`)."""

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


@pytest.mark.timeout(600)
def test_nothing_is_lost_that_no_killed_process_held(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.node_kill", "--engines", "2", "--clients", "3", "--watch-s", "8"]
    command += ["--kill", "engine", "--kill", "node", "--lease-ms", "5000", "--out", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), STACK_ID_VARIABLE: (mark := uuid.uuid4().hex)}
    # In a process of its own: Ray reads its environment when it is imported.
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (tmp_path / "node-kills.json").exists(), done.stdout + done.stderr
    report = json.loads((tmp_path / "node-kills.json").read_text())
    assert [report[name] for name in ("lost", "twice", "wrong", "unfinished")] == [[], [], [], []]
    assert report["requests"] > 0
    engine, node = report["consequences"]
    assert engine["online_reasons"] == []
    # With the node goes a front, which may have had a request that it had not yet written down.
    assert all("RemoteProtocolError" in reason for reason in node["online_reasons"])
    assert node["online_back_s"] is not None
    assert max(engine["offline_shares"][-3:]) > 0, "what is left goes on"
    assert max(node["offline_shares"][-3:]) > 0
    assert find_processes(mark) == []
