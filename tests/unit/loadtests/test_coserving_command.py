"""The command: its options, what it says when it fails, and reports of what was kept."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from conserve.config import EngineSettings
from conserve.engine.page import Counters
from loadtests import coserve
from loadtests.coserving.catalog import WORKLOADS
from loadtests.coserving.driver import CoServingEngine, RunError
from loadtests.coserving.kept import keep_run, keep_workload
from loadtests.coserving.model_shapes import write_shape
from loadtests.coserving.plan import BenchOptions
from loadtests.coserving.results import OnlineRecord, OutputEvent, RunResult, WorkloadResults
from loadtests.trace_source import TraceSource

APP = typer.Typer()
APP.command()(coserve.main)


def invoke(*arguments: str) -> Any:
    return CliRunner(env={"CONSERVE_TRACES": None, "COLUMNS": "200", "NO_COLOR": "1"}).invoke(APP, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "chat,chess"], "'chess' is none of chat, bursty, tide, pressure, interrupt, prefix"),
        (["--ablate", "sleep"], "'sleep' is none of token-budget, prefix-order"),
        (["--model", "./nowhere"], "there is no folder"),
        (["--model", "owner/name"], "must be a folder"),
        (["--repeats", "0"], "--repeats"),
        (["--workload", ""], "names none of chat"),
        (["--tightness", "inf"], "must be a finite number"),
        (["--duration-s", "inf"], "must be a finite number"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = invoke(*arguments, "--out", str(tmp_path), "--device", "cpu")
    assert result.exit_code == 2
    assert message in result.output


def test_nothing_kept_is_an_error(tmp_path: Path) -> None:
    result = invoke("--report-only", "--out", str(tmp_path), "--workload", "all")
    assert result.exit_code == 1
    assert "nothing is kept of chat, bursty" in result.output.replace("\n", "")


def test_what_was_kept_is_reported(tmp_path: Path) -> None:
    records = tuple(
        OnlineRecord(2.0, 2.0, (OutputEvent(ttft_s, 1), OutputEvent(ttft_s + 0.1 * ttft_s, 1)), 10, 2, 3.5)
        for ttft_s in (2.1, 2.5, 3.0)
    )
    run = RunResult("online-only", 1, "chat", 1, "stock", 1.0, 5.0, records, (), Counters(), Counters(), 1)
    results = WorkloadResults("chat", "cpu", "m", "x", {}, "generated", 1, 1, 1.25, 2.0, 0.3, 0.6, 4.0)
    keep_workload(tmp_path / "raw" / "chat", results)
    keep_run(tmp_path / "raw" / "chat", run, 1)
    broken = tmp_path / "raw" / "bursty" / "workload.json"
    broken.parent.mkdir()
    broken.write_text("{")
    (tmp_path / "raw" / "pressure").mkdir()
    result = invoke("--report-only", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "bursty/workload.json: file: Invalid JSON" in result.output.replace("\n", "")
    broken.unlink()
    assert invoke("--report-only", "--out", str(tmp_path)).exit_code == 0
    report = json.loads((tmp_path / "chat.json").read_text())
    assert report["runs"]["online-only"]["ttft_ms"]["p50"] == pytest.approx(500)
    assert not (tmp_path / "pressure.json").exists()


def conduct(tmp_path: Path, source: TraceSource, failure: Exception) -> tuple[int, str]:
    async def start(settings: EngineSettings) -> CoServingEngine:
        raise failure

    bench = coserve.Bench(
        options=BenchOptions(machine="a test", model="fake"),
        workloads=[WORKLOADS["chat", "cpu"]],
        model=write_shape("llama-3.1-8b-random", tmp_path),
        start_engine=start,
        source=source,
        out=tmp_path,
    )
    printed = io.StringIO()
    code = coserve.conduct(bench, Console(file=printed, width=200))
    return code, printed.getvalue()


def test_the_plan_is_printed_and_failures_are_one_line(tmp_path: Path) -> None:
    code, printed = conduct(tmp_path, TraceSource(None), RunError("no [luck]"))
    assert code == 1
    assert "fake on a test" in printed
    assert "(minutes:seconds): chat " in printed
    assert "The benchmark failed: no [luck]" in printed


def test_an_interruption_says_what_is_left(tmp_path: Path) -> None:
    code, printed = conduct(tmp_path, TraceSource(None), KeyboardInterrupt())  # type: ignore[arg-type]
    assert code == 130
    assert "--report-only" in printed


def test_a_missing_trace_is_one_line(tmp_path: Path) -> None:
    code, printed = conduct(tmp_path, TraceSource(tmp_path / "missing"), RunError("not reached"))
    assert code == 1
    assert "no such trace or folder" in printed


def test_what_an_earlier_benchmark_kept_is_removed_once_this_one_can_start(tmp_path: Path) -> None:
    old = tmp_path / "raw" / "chat" / "001-online-only-1.json"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    conduct(tmp_path, TraceSource(tmp_path / "missing"), RunError("not reached"))
    assert old.exists()
    conduct(tmp_path, TraceSource(None), RunError("no luck"))
    assert not old.exists()


def test_two_benchmarks_do_not_share_a_folder(tmp_path: Path) -> None:
    with coserve._hold_folder(tmp_path):
        result = invoke("--out", str(tmp_path))
    assert result.exit_code == 2
    assert "another benchmark is running" in result.output


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (subprocess.CompletedProcess([], 0, "NVIDIA H100\nNVIDIA H100\n", ""), "NVIDIA H100"),
        (subprocess.CompletedProcess([], 0, "", ""), None),
        (subprocess.CalledProcessError(9, "nvidia-smi"), None),
    ],
)
def test_the_gpu_s_name(answer: Any, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_for(*_: object, **__: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(coserve.shutil, "which", lambda _: "/bin/nvidia-smi")
    monkeypatch.setattr(coserve.subprocess, "run", answer_for)
    assert coserve.read_gpu_name() == expected
    monkeypatch.setattr(coserve.shutil, "which", lambda _: None)
    assert coserve.read_gpu_name() is None
