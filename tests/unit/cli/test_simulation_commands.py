"""`conserve simulate` and `conserve plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from conserve.cli import console
from conserve.cli.main import app
from conserve.simulator.policies import POLICIES
from conserve.simulator.scenarios import SCENARIOS

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    monkeypatch.setattr("conserve.cli.main.configure_program_logs", lambda: None)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_trace(path: Path, rows: int, *more: str) -> Path:
    lines = [
        f"2023-11-16 18:{number // 600:02}:{number / 10 % 60:04.1f},{300 + number % 700},{20 + number % 90}"
        for number in range(rows)
    ]
    path.write_text("\n".join([HEADER, *lines, *more]) + "\n", encoding="utf-8")
    return path


def test_a_workload_is_simulated_under_the_chosen_policies(tmp_path: Path) -> None:
    out = tmp_path / "new" / "figures.json"

    result = run("simulate", "interrupt", "--policies", "conserve,stock-priority", "--duration", 20, "--out", out)

    assert result.exit_code == 0, result.output
    assert "conserve" in result.stdout
    assert "iterations" in result.stderr
    figures = json.loads(out.read_text())
    assert list(figures["runs"]) == ["conserve", "stock-priority"]
    assert figures["runs"]["conserve"]["ttft_ms"]["p99"] < figures["runs"]["stock-priority"]["ttft_ms"]["p99"]


@pytest.mark.parametrize("workload", SCENARIOS)
def test_every_workload_runs_under_every_policy(workload: str) -> None:
    result = run("simulate", workload, "--policies", "all", "--duration", 5, "--profile", "h200/qwen-2.5-14b")

    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in POLICIES)


def test_a_replica_of_several_fails(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"

    result = run(
        *("simulate", "chat", "--policies", "conserve", "--duration", 30, "--replicas", 2, "--out", out),
        *("--incident", "40:1:fail", "--incident", "50:1:start"),
    )

    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["runs"]["conserve"]["online_broken"] > 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("no-such",), "WORKLOAD: 'no-such'"),
        (("chat", "--policies", "conserve,foo"), "--policies: foo is none of"),
        (("chat", "--policies", ","), "--policies: nothing is none of"),
        (("chat", "--profile", "h100"), "--profile: 'h100' is no profile"),
        (("chat", "--profile", "a100-40g/llama-3.1-70b-tp4"), "does not fit"),
        (("chat", "--measured", "/no/such/file"), "--measured: /no/such/file: cannot be read"),
        (("chat", "--incident", "5:fail"), "--incident: '5:fail' is not"),
        (("chat", "--incident", "5:3:fail"), "REPLICA must be from 0 to 0"),
        (("chat", "--incident", "5:0:explode"), "'explode' is none of"),
        (("chat", "--trace", "/no/such/trace"), "--trace: /no/such/trace cannot be read"),
        (("chat", "--duration", "0"), "--duration"),
    ],
)
def test_a_wrong_option_of_simulate_is_named(arguments: tuple[str, ...], part: str) -> None:
    result = run("simulate", *arguments)

    assert result.exit_code == 2, result.output
    assert part in result.stderr
    assert "Traceback" not in result.output


def test_a_cluster_is_planned_for_a_trace(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.csv", 600, "yesterday,1,2", "2023-11-16 18:05:00,many,2")

    result = run("plan", "--trace", trace, "--batch-requests", 1_000, "--out", tmp_path / "plan")

    assert result.exit_code == 0, result.output
    assert f"{trace}: line 602: TIMESTAMP" in result.stderr
    assert f"{trace}: line 603: ContextTokens" in result.stderr
    assert "2 lines left out" in result.stderr
    assert "million a day" in result.stdout
    assert {path.name for path in (tmp_path / "plan").iterdir()} == {"plan.html", "plan.json", "plan.png"}


def test_a_cluster_is_planned_for_rates_and_lengths() -> None:
    result = run("plan", "--rate", 5, "--prompt-tokens", 500, "--output-tokens", 50, "--duration", 60)

    assert result.exit_code == 0, result.output
    assert "h100/llama-3.1-8b" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "--trace or --rate"),
        (("--rate", "5", "--trace", "x"), "--trace or --rate"),
        (("--rate", "0"), "--rate"),
        (("--rate", "0.5", "--duration", "60"), "--rate, --duration"),
        (("--rate", "5", "--tbt-slo-ms", "1", "--duration", "60"), "--tbt-slo-ms: 1 is less"),
        (("--rate", "5", "--ttft-slo-ms", "1", "--duration", "60"), "--ttft-slo-ms: 1 is less"),
        (("--rate", "5", "--batch-prompt-tokens", "x"), "--batch-prompt-tokens: 'x'"),
        (("--rate", "5", "--batch-output-tokens", "9:3"), "--batch-output-tokens: '9:3'"),
        (("--rate", "5", "--batch-prompt-tokens", "900000", "--duration", "60"), "half of the KV cache"),
        (("--rate", "5", "--profile", "x"), "--profile: 'x'"),
    ],
)
def test_a_wrong_option_of_plan_is_named(arguments: tuple[str, ...], part: str) -> None:
    result = run("plan", *arguments)

    assert result.exit_code == 2, result.output
    assert part in result.stderr
    assert "Traceback" not in result.output


def test_a_trace_without_a_usable_line_says_where_the_others_are_wrong(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.csv", 0, *(f"x,{number},2" for number in range(30)))

    result = run("plan", "--trace", trace)

    assert result.exit_code == 2
    assert "line 2: TIMESTAMP" in result.stderr
    assert "holds no request" in result.stderr


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = run("plan", "--rate", 5, "--duration", 60, "--out", tmp_path / "file")

    assert result.exit_code == 1
    assert "--out" in result.stderr
    assert "Traceback" not in result.output
