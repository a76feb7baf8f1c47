"""A short run of kills; the long one is a command (`python -m loadtests.kill_runs`)."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
from rich.progress import Progress

from loadtests.kill_runs import KillRun
from loadtests.killing.light import LightHousehold
from loadtests.killing.roles import ENGINE_LOG


async def test_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    with Progress(disable=True) as progress:
        generator = random.Random(3)
        household = LightHousehold(tmp_path, 2, generator)
        run = KillRun(household, 12, 0.4, (1, 120), generator, token_log=tmp_path / ENGINE_LOG)
        report = await run.run(progress)
    assert sum(report.kills.values()) == 12
    assert report.requests > 0
    assert report.flex > 0
    assert report.is_clean, report
    assert report.again is not None
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]
