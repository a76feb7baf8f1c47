"""A large file over HTTP is measured on real routes."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import typer
from rich.console import Console
from typer.testing import CliRunner

from conserve.config import Settings
from loadtests import upload_cost
from loadtests.upload_cost import UploadReport, render
from tests.integration.bench import MODEL, Bench
from tests.integration.jobs.served_routes import serve_routes


async def test_an_upload_is_measured_and_leaves_no_work(bench: Bench, settings: Settings, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(upload_cost.main)
    done = threading.Event()
    results = []

    def upload(url: str) -> None:
        try:
            args = ["--base-url", url, "--model", MODEL, "--lines", "50", "--out", str(tmp_path)]
            results.append(CliRunner().invoke(app, args))
        finally:
            done.set()

    with serve_routes(settings) as url:
        thread = threading.Thread(target=upload, args=(url,))
        thread.start()
        while not done.is_set():
            await bench.keeper.run_once()
        thread.join()
    (result,) = results
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "upload.json").read_text())
    assert (report["lines"], report["file_mb"]) == (50, 0.2)
    assert report["enqueue_s"] > 0
    (batch,) = (await bench.service.list_batches(None, 20)).data
    assert batch.status == "cancelled"
    assert (await bench.service.list_files(purpose="batch")).data == []


def test_a_deployment_that_is_not_there_is_named() -> None:
    app = typer.Typer()
    app.command()(upload_cost.main)
    done = CliRunner().invoke(app, ["--base-url", "http://127.0.0.1:1"])
    assert done.exit_code == 1
    assert done.output.startswith("Not measured: ")


def test_the_table_says_what_is_too_much() -> None:
    report = UploadReport(
        lines=50_000, file_mb=200.0, upload_s=3.0, enqueue_s=6.0, rss_growth_mb={"ingress": 20.0, "HTTP proxy": 230.0}
    )
    console = Console(file=io.StringIO(), width=120)
    console.print(render(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert report.most_mb == 230.0
    verdicts = {name: line for line in text.splitlines() for name in ("ingress", "proxy", "queued") if name in line}
    assert "goal met" in verdicts["ingress"]
    assert "missed" in verdicts["proxy"]
    assert " met" in verdicts["queued"]
