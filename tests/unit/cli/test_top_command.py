"""`conserve top` and its rates."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from conserve.cli import top_command
from conserve.cli.main import app
from conserve.cli.top_rates import Rates
from conserve.client import ClusterStatus

REPLICA = {
    "replica_id": "r[1]",
    "model": "m",
    "state": "serving",
    "window": 6,
    "offline_running": 4,
    "online_running": 2,
}
REPLICA |= {"online_waiting": 1, "kv_usage": 0.25, "offline_prompt_tokens": 100, "slo_attainment": 0.98}
BATCH = {"id": "batch_1", "status": "in_progress", "total": 90, "completed": 40, "failed": 5, "leased": 4}
STATUS = {"replicas": [REPLICA], "batches": [BATCH], "flex_waiting": 3}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conserve.cli.main.configure_program_logs", lambda: None)
    monkeypatch.setattr("conserve.client.retries.FIRST_PAUSE_S", 0.0)


def run(application: Any, *options: str, status: dict[str, Any] = STATUS) -> Result:
    application.answers["GET", "/conserve/v1/status"] = (200, status)
    arguments = ["top", "--period", "0.2", "--url", application.base_url, *options]
    return CliRunner().invoke(app, arguments)


def test_without_a_terminal_each_look_is_a_line(application: Any) -> None:
    result = run(application, "--count", "2")
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    assert "replicas: 1 serving; online: 2 running, 1 waiting; offline: 4 of 6, - tok/s; KV: 25%" in first
    assert "batches: 1, 45 of 90 requests; flex: 3 waiting" in first
    assert "offline: 4 of 6, 0 tok/s" in second


def test_json_lines(application: Any) -> None:
    looks = [json.loads(line) for line in run(application, "--json", "-n", "2").stdout.splitlines()]
    assert len(looks) == 2
    assert looks[0]["replicas"][0]["window"] == 6


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (STATUS, ["r[1]", "4 / 6", "98%", "2 +1", "batch_1", "45 / 90"]),
        ({"replicas": [], "batches": []}, ["No replica reports", "No batch is under way"]),
        (STATUS | {"batches": [BATCH | {"id": f"batch_{n}"} for n in range(20)]}, ["and 5 more"]),
        (STATUS | {"controller": "x", "controller_elsewhere": True}, ["another cluster"]),
    ],
)
def test_at_a_terminal_it_is_a_picture(
    application: Any, monkeypatch: pytest.MonkeyPatch, status: dict[str, Any], shown: list[str]
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(top_command, "out", Console(file=screen, force_terminal=True, width=140, height=60))
    result = run(application, "-n", "1", status=status)
    assert result.exit_code == 0, result.output
    for part in shown:
        assert part in screen.getvalue()


def test_ctrl_c_is_how_one_leaves(application: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("conserve.cli.top_command.time.sleep", interrupt)
    result = run(application)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1


def test_an_application_that_goes_away_is_one_line(silent_url: str) -> None:
    result = CliRunner().invoke(app, ["top", "-n", "1", "--url", silent_url])
    assert result.exit_code == 1
    assert f"nothing answers at {silent_url}" in result.stderr


def look(*replicas: tuple[str, int]) -> ClusterStatus:
    return ClusterStatus.model_validate(
        {
            "replicas": [REPLICA | {"replica_id": name, "offline_prompt_tokens": tokens} for name, tokens in replicas],
            "batches": [],
        }
    )


def test_rates_are_those_of_the_last_ten_seconds() -> None:
    rates = Rates()
    assert rates.total_per_s() is None
    for second in range(30):
        rates.take(look(("a", 10 * second if second < 15 else 150 + 100 * (second - 15)), ("b", 5 * second)), second)
    assert rates.tokens_per_s("a") == pytest.approx(100)
    assert rates.total_per_s() == pytest.approx(105)
    rates.take(look(("a", 0), ("new", 7)), 30)
    assert rates.tokens_per_s("a") == 0
    assert rates.tokens_per_s("new") is None
