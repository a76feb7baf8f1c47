"""A short run of kills; the long one is a command (`python -m loadtests.kill_runs`)."""

from __future__ import annotations

from pathlib import Path

import psutil
from rich.progress import Progress

from loadtests.kill_runs import KillRun


async def test_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    with Progress(disable=True) as progress:
        report = await KillRun(tmp_path, kills=12, pause_s=0.4, replicas=2, seed=3).run(progress)
    assert sum(report.kills.values()) == 12
    assert report.requests > 0
    assert report.is_clean, report
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]
