"""What programs get from the command line: JSON, whole lines, statuses, completion; and programs that it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from conserve.cli.completion import complete_batches
from conserve.cli.main import app
from conserve.simulator.compiling import CompileError
from tests.unit.cli.conftest import BATCH
from tests.unit.cli.test_commands import write_config


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conserve.cli.main.configure_program_logs", lambda: None)
    monkeypatch.setattr("conserve.client.retries.FIRST_PAUSE_S", 0.0)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "command",
    [
        ("batch", "status", "batch_1"),
        ("batch", "watch", "batch_1"),
        ("batch", "cancel", "batch_1"),
        ("batch", "submit", "in.jsonl", "--watch"),
    ],
    ids=" ".join,
)
def test_batches_as_json(
    application: Any, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("{}\n")
    result = run(*command, "--json", "--url", application.base_url)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["id"] == "batch_1"


def test_lists_and_status_as_json(application: Any) -> None:
    application.answers["GET", "/v1/batches?limit=20"] = (200, {"data": [BATCH, BATCH]})
    listed = json.loads(run("batch", "list", "--json", "--url", application.base_url).stdout)
    assert [one["status"] for one in listed] == ["completed", "completed"]
    application.answers["GET", "/conserve/v1/status"] = (200, {"replicas": [], "batches": []})
    found = json.loads(run("status", "--json", "--url", application.base_url).stdout)
    assert (found["ready"], found["replicas"]) == (False, [])


def test_compiling_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = tmp_path / "build"
    monkeypatch.setattr("conserve.cli.compile_command.find_build", lambda folder: build)
    monkeypatch.setattr("conserve.cli.compile_command.compile_modules", lambda folder: build.mkdir())
    first, second = (json.loads(run("compile", "--json").stdout) for _ in range(2))
    assert (first["folder"], first["is_new"], first["duration_s"] >= 0) == (str(build), True, True)
    assert second == {"folder": str(build), "is_new": False, "duration_s": None}
    assert run("compile").stdout == ""


def test_compiling_that_fails_writes_no_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        raise CompileError("there is no C compiler")

    monkeypatch.setattr("conserve.cli.compile_command.find_build", lambda folder: tmp_path / "build")
    monkeypatch.setattr("conserve.cli.compile_command.compile_modules", refuse)
    result = run("compile", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the simulator is not compiled: there is no C compiler" in result.stderr


def test_a_chat_as_json(application: Any) -> None:
    pieces = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("He", "llo")]
    events = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
    application.answers["POST", "/v1/chat/completions"] = (200, events)
    result = run("chat", "hi", "--model", "m", "--json", "--url", application.base_url)
    assert json.loads(result.stdout) == {"model": "m", "answer": "Hello"}


def test_simulations_and_plans_as_json() -> None:
    result = run("simulate", "chat", "--policies", "conserve", "--duration", 5, "--json")
    assert list(json.loads(result.stdout)["runs"]) == ["conserve"]
    result = run("plan", "--rate", 5, "--prompt-tokens", 500, "--output-tokens", 50, "--duration", 60, "--json")
    assert json.loads(result.stdout), result.output


def test_a_configuration_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_config(tmp_path, replicas=3, state_dir=str(tmp_path / "state"))
    monkeypatch.setenv("CONSERVE_HARVEST__MAX_WINDOW", "9")
    result = run("config", "check", "-f", path)
    assert result.exit_code == 0, result.output
    assert "3 x smollm2-135m-instruct (conserve), on 127.0.0.1:8000" in result.stdout
    assert "overridden by CONSERVE_HARVEST__MAX_WINDOW" in result.stdout
    resolved = json.loads(run("config", "check", "-f", path, "--json").stdout)
    assert resolved["applications"][0]["args"]["harvest"]["max_window"] == 9
    monkeypatch.setenv("CONSERVE_REPLICAS", "none")
    wrong = run("config", "check", "-f", path)
    assert wrong.exit_code == 2
    assert "replicas" in wrong.stderr


def test_without_a_terminal_a_row_is_a_line(application: Any) -> None:
    long = BATCH | {"id": "batch_" + "0" * 60}
    application.answers["GET", "/v1/batches?limit=20"] = (200, {"data": [long] * 2})
    lines = run("batch", "list", "--url", application.base_url).stdout.splitlines()
    assert len(lines) == 3
    assert lines[1].split()[:3] == [long["id"], "completed", "24h"]


def test_the_shell_is_offered_batches(application: Any, monkeypatch: pytest.MonkeyPatch, silent_url: str) -> None:
    application.answers["GET", "/v1/batches?limit=100"] = (200, {"data": [BATCH, BATCH | {"id": "batch_2"}]})
    words = {"_CONSERVE_COMPLETE": "complete_bash", "COMP_WORDS": "conserve batch status batch_", "COMP_CWORD": "3"}
    environ = {**os.environ, **words, "CONSERVE_URL": application.base_url}
    program = "import sys; sys.argv[0] = 'conserve'; from conserve.cli.program import main; main()"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert found.stdout.split() == ["batch_1", "batch_2"], found.stderr
    monkeypatch.setenv("CONSERVE_URL", silent_url)
    assert complete_batches("batch_") == []


@pytest.mark.parametrize(("kind", "module"), [("engine", "loadtests.coserve"), ("front", "loadtests.loadtest")])
def test_benchmarks_are_programs_of_their_own(monkeypatch: pytest.MonkeyPatch, kind: str, module: str) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: started.append(arguments))
    for options in (("--help",), ("--out", "x", "--seed=3")):
        assert run("bench", kind, *options).exit_code == 0
        assert started.pop() == [sys.executable, "-m", module, *options]


def test_a_benchmark_s_exit_status_is_the_command_s() -> None:
    program = "import sys; sys.argv = ['conserve', 'bench', 'engine', '--workload', 'none-such'];"
    program += "from conserve.cli.program import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "none-such" in done.stderr
