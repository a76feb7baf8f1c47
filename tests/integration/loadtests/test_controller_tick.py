from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from loadtests import controller_tick


def test_rounds_are_timed_on_a_real_server(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(controller_tick.main)
    sizes = ["--replicas", "3", "--replicas", "12", "--jobs", "20", "--tenants", "4", "--rounds", "8"]
    done = CliRunner().invoke(app, [*sizes, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    reports = [json.loads(line) for line in (tmp_path / "controller_tick.json").read_text().splitlines()]
    assert [(one["replicas"], one["jobs"], one["tenants"]) for one in reports] == [(3, 20, 4), (12, 20, 4)]
    for one in reports:
        assert 0 < one["least_ms"] <= one["median_ms"]
        assert one["controller_cpu_ms"] > 0
        assert one["written"] <= one["replicas"]
        assert one["report_bytes"] > 100
