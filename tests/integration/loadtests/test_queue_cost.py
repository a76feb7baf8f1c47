"""The figures are of real work on a real server, and say whether they are good enough."""

from __future__ import annotations

import io
import json
from pathlib import Path

import typer
from rich.console import Console
from typer.testing import CliRunner

from loadtests import queue_cost
from loadtests.queue_cost import LIMITS, QueueReport, render
from loadtests.report import Ratio

REPORT = QueueReport(
    server="valkey 9.1.2",
    queued=1_000_000,
    queued_bytes=25.3,
    leased_bytes=300.0,
    committed_bytes=150.0,
    requests_per_s=12_000.0,
    repeats_per_s=[11_000.0, 12_000.0, 13_000.0],
    claim_ms=0.22,
    short_claim_ms=0.2,
    claim_ratio=Ratio(median=1.1, min=1.0, max=1.2, interval="repeats"),
    lines=50_000,
    file_mb=200.0,
    upload_s=3.0,
    enqueue_s=21.0,
    rss_growth_mb=80.0,
)


def test_everything_is_measured(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(queue_cost.main)
    size = ["--queued", "1200", "--lines", "40", "--requests", "700", "--repeats", "2", "--turns", "3"]
    done = CliRunner().invoke(app, [*size, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "queue.json").read_text())
    assert written["verdicts"].keys() == LIMITS.keys()
    assert (written["queued"], written["lines"], written["repeats"]) == (1_200, 40, 2)
    assert len(written["repeats_per_s"]) == 2
    for name in ("queued_bytes", "requests_per_s", "claim_ms", "short_claim_ms", "enqueue_s", "file_mb"):
        assert written[name] > 0


def test_the_table_says_what_is_good_enough() -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(render(REPORT))
    lines = console.export_text().splitlines()
    verdicts = {
        "1,000,000 queued, bytes": ("25.3", "<= 250", "<= 120", "goal met"),
        "50,000 lines, 200 MB": ("21.0", "<= 20", "<= 5", "missed"),
        "growth of the process": ("80", "<= 200", "goal met"),
        "requests/s": ("12,000 (11,000 to 13,000)", ">= 5,000", ">= 20,000", " met"),
        "claim of 8": ("1.10 (1.00 to 1.20)", "<= 2", "goal met"),
    }
    for label, expected in verdicts.items():
        (row,) = [line for line in lines if label in line]
        assert all(one in row for one in expected), row
