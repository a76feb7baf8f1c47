"""The whole demonstration against a fake server, and what a signal does to it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtests import demo
from loadtests.demo import DemoOptions, conduct
from loadtests.report import read_report
from tests.integration.bench import TIMEOUT_S

REPOSITORY = Path(__file__).parents[3]
INTERRUPTED_DEMO = Path(__file__).with_name("interrupted_demo.py")


def run_demo(server: Any, out: Path, **options: Any) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=120)
    settings: dict[str, Any] = {"requests": 12, "alone_s": 1.0, "chat_rate_per_s": 20.0, "poll_s": 0.05} | options
    code = conduct(DemoOptions(out=out, base_url=server.base_url, **settings), None, console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def test_a_whole_demonstration(server: Any, tmp_path: Path) -> None:
    code, printed = run_demo(server, tmp_path)
    assert code == 0, printed
    report = read_report(tmp_path / "summary.json")
    assert set(report.runs) == {"online-only", "conserve"}
    alone, harvesting = report.runs["online-only"], report.runs["conserve"]
    assert report.model == "fake-135m"
    assert alone.ttft_ms is not None
    assert harvesting.tbt_ms is not None
    assert alone.online_errors == harvesting.online_errors == 0
    assert alone.offline_requests is None
    assert harvesting.offline_requests == 12
    assert harvesting.offline_duration_s is not None
    assert harvesting.offline_tokens_per_s is not None
    assert harvesting.offline_tokens_per_s * harvesting.offline_duration_s == pytest.approx(12 * 390)
    assert harvesting.offline_busy_s == pytest.approx(12 * server.request_s)
    assert harvesting.offline_busy_share is not None
    assert 0 < harvesting.offline_busy_share <= 1
    assert {"ttft_p99_vs_online_only", "tbt_p99_vs_online_only"} <= set(report.ratios)
    assert report.batch is not None
    assert (report.batch.status, report.batch.total, report.batch.completed, report.batch.failed) == (
        "completed",
        12,
        12,
        0,
    )
    assert report.batch.output_file == "output.jsonl"
    lines = [json.loads(line) for line in (tmp_path / "output.jsonl").read_text().splitlines()]
    assert sorted(line["custom_id"] for line in lines) == [f"summary-{index:05d}" for index in range(12)]
    assert "TTFT p50" in printed
    assert "A summary of summary-00000." in printed


def test_a_server_without_status_leaves_figures_out(server: Any, tmp_path: Path) -> None:
    server.with_status = False
    code, printed = run_demo(server, tmp_path)
    assert code == 0, printed
    run = json.loads((tmp_path / "summary.json").read_text())["runs"]["conserve"]
    assert not {"offline_busy_s", "offline_busy_share", "engine_cpu_s", "harvested_cpu_s"} & set(run)
    assert "Engine time harvested" not in printed


def test_failed_requests_fail_the_demonstration(server: Any, tmp_path: Path) -> None:
    server.fail_custom_ids = {"summary-00003"}
    code, printed = run_demo(server, tmp_path)
    assert code == 1
    assert "1 of 12 requests of the batch failed, see errors.jsonl" in printed
    assert json.loads((tmp_path / "errors.jsonl").read_text())["custom_id"] == "summary-00003"


def test_a_lost_result_fails_the_demonstration(server: Any, tmp_path: Path) -> None:
    server.drop_custom_ids = {"summary-00003"}
    code, printed = run_demo(server, tmp_path)
    assert code == 1
    assert "1 custom_id without a result: summary-00003" in printed


def test_a_batch_that_does_not_end_is_cancelled_and_reported(server: Any, tmp_path: Path) -> None:
    server.request_s = 0.2
    code, printed = run_demo(server, tmp_path, requests=500, batch_limit_s=1.0)
    assert code == 1
    assert "the batch is cancelled, not completed" in printed
    report = read_report(tmp_path / "summary.json")
    assert report.batch is not None
    assert 0 < report.batch.completed < 500
    assert (tmp_path / "output.jsonl").read_text()


def test_a_batch_that_is_refused_says_why(server: Any, tmp_path: Path) -> None:
    server.refuse_batch = True
    code, printed = run_demo(server, tmp_path)
    assert code == 1
    assert "the batch was refused: There is no such model. (model_not_found, line 1)" in printed
    assert not (tmp_path / "output.jsonl").exists()


def test_chats_that_fail_are_an_error(server: Any, tmp_path: Path) -> None:
    server.fail_chats = True
    code, printed = run_demo(server, tmp_path)
    assert code == 1
    assert "the first chats failed: InternalServerError" in printed


def test_documents_that_are_not_there_are_named(server: Any, tmp_path: Path) -> None:
    code, printed = run_demo(server, tmp_path, documents=tmp_path / "nowhere")
    assert code == 1
    assert "nowhere is not a folder" in printed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--base-url", "localhost:8000"], "--base-url"), (["--requests", "0"], "--requests")],
)
def test_wrong_options_are_refused(arguments: list[str], named: str, tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(demo.main)
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert named in result.output


def start_interrupted_demo(stage: str, base_url: str, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(INTERRUPTED_DEMO), stage, base_url, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["up", "chat", "batch"])
def test_a_signal_stops_everything(stage: str, number: signal.Signals, server: Any, tmp_path: Path) -> None:
    server.request_s = 1.0
    process = start_interrupted_demo(stage, server.base_url, tmp_path)
    printed: list[str] = []
    sign = {"up": "engine is loading", "chat": "Chat alone", "batch": "Chat, while a batch"}[stage]
    killer = threading.Timer(2 * TIMEOUT_S, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if sign in line:
                process.send_signal(number)
            if "stopping everything" in line:
                # Impatience while the stack is going down changes nothing.
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=TIMEOUT_S)
        process.stdout.close()
    finally:
        killer.cancel()
        process.kill()
        process.wait()
    output = "".join(printed)
    assert code == 130, output
    assert "Traceback" not in output
    assert (tmp_path / "downs").read_text() == "down begun\ndown ended\n"
    assert "Interrupted. Nothing is left running." in output
