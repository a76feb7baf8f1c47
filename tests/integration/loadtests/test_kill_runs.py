"""A short run of kills; the long one is a command (`python -m loadtests.kill_runs`)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import psutil
import typer
from rich.progress import Progress
from typer.testing import CliRunner

from loadtests import kill_runs
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


def test_the_command_kills_what_it_is_told_to(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(kill_runs.main)
    args = ["--kills", "2", "--pause-ms", "300", "--replicas", "1", "--only", "replica", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "kills.json").read_text())["kills"] == {"replica": 2}
    assert CliRunner().invoke(app, ["--only", "nobody"]).exit_code == 2
