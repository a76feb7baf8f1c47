"""What leases and the journal cost is measured with a real engine, queue and harvester."""

from __future__ import annotations

import io
import json
from pathlib import Path

import typer
from rich.console import Console
from typer.testing import CliRunner

from loadtests import journal_cost
from loadtests.journal_cost import WAYS, JournalReport, render
from loadtests.report import Ratio


def test_everything_is_measured(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(journal_cost.main)
    size = ["--window", "4", "--requests", "6", "--tokens", "40", "--turns", "1"]
    done = CliRunner().invoke(app, [*size, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "journal.json").read_text())
    assert written["tokens_per_s"].keys() == set(WAYS) == written["front_ms"].keys()
    assert all(value > 0 for value in [*written["tokens_per_s"].values(), *written["front_ms"].values()])
    assert 0 < written["at_risk"] <= 40


def test_the_table_says_what_is_good_enough() -> None:
    ratio = Ratio(median=0.99, min=0.97, max=1.01, interval="repeats")
    report = JournalReport(
        requests=32,
        output_tokens=120,
        window=8,
        tokens_per_s=dict.fromkeys(WAYS, 98.7),
        leased=ratio,
        journaled=ratio,
        front_ms=dict.fromkeys(WAYS, 140.0),
        journal_tokens=32,
        at_risk=31,
        verdict="met",
    )
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(render(report))
    text = " ".join(console.export_text().split())
    assert "0.990 (0.970 to 1.010)" in text
    assert "At most 31 tokens of a request" in text
    assert "2.0%, and should at most 0.5%: met" in text
