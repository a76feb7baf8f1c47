"""`conserve profile` with an engine that is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from conserve.cli import console
from conserve.cli.main import app
from conserve.config import EngineSettings
from conserve.engine import profiler
from conserve.engine.profile_store import StoredProfile, save_profile
from conserve.policy.latency import IterationShape, LatencyModel

KEY = {
    "vllm": "0",
    "model": "tiny",
    "dtype": "float32",
    "quantization": None,
    "kv_cache_dtype": "auto",
    "block_size": 16,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "enforce_eager": True,
    "async_scheduling": False,
    "attention_backend": None,
    "hardware": "a slow processor, 2 cores",
}


@pytest.fixture(autouse=True)
def quiet_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    monkeypatch.setattr("conserve.cli.main.configure_program_logs", lambda: None)
    monkeypatch.setenv("CONSERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")


def run(config: Path) -> Result:
    return CliRunner().invoke(app, ["profile", "--config", str(config)])


def write_config(folder: Path, **args: Any) -> Path:
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    path = folder / "serve_config.yaml"
    settings = {"model": {"source": str(model)}, **args}
    ours = {"name": "conserve", "import_path": "deployments.app:build_app", "args": settings}
    path.write_text(yaml.safe_dump({"applications": [ours]}), encoding="utf-8")
    return path


def make_model() -> LatencyModel:
    model = LatencyModel()
    for number in range(1, 400):
        shape = IterationShape().add_decode(10 * number) if number % 3 else IterationShape()
        if number % 2:
            shape = shape.add_prefill(4 * number, 0)
        model.observe(shape, 40 + 2 * shape.prefill_tokens)
    return model


def test_profile_shows_costs_and_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, EngineSettings]] = []

    def make_profile(
        model: str, settings: EngineSettings, folder: Path, report: Callable[[float], None]
    ) -> tuple[Path, StoredProfile]:
        calls.append((model, settings))
        report(0.5)
        stored = StoredProfile.model_validate({"key": KEY, "profile": make_model().to_profile()})
        return save_profile(folder, stored.key, stored.profile), stored

    monkeypatch.setattr(profiler, "make_profile", make_profile)
    result = run(write_config(tmp_path, engine={"max_num_seqs": 7}))
    assert result.exit_code == 0, result.output
    ((model, settings),) = calls
    assert (model, settings.max_num_seqs) == (str(tmp_path / "model"), 7)
    (stored,) = (tmp_path / "cache" / "profiles").iterdir()
    assert f"Stored: {stored}" in result.stdout
    assert "a slow processor, 2 cores" in result.stdout
    costs = {
        cells[0]: cells[1] for line in result.stdout.splitlines() if len(cells := re.split(r"\s{2,}", line.strip())) > 1
    }
    assert float(costs["an iteration"]) == pytest.approx(40, rel=0.01)
    assert float(costs["a prompt token"]) == pytest.approx(2, rel=0.01)
    assert "median 0." in result.stdout


def test_each_of_two_replicas_has_half_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bindings: list[str] = []

    def make_profile(model: str, settings: EngineSettings, *_: object) -> None:
        bindings.append(settings.cpu_threads_bind)
        raise RuntimeError("enough")

    monkeypatch.setattr(profiler, "make_profile", make_profile)
    monkeypatch.setattr("psutil.Process.cpu_affinity", lambda self: [2, 3, 6, 7])
    run(write_config(tmp_path, replicas=2))
    assert bindings == ["2,3"]


def test_a_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_profile(*_: object) -> None:
        raise profiler.ProfileError("the engine has stored no profile")

    monkeypatch.setattr(profiler, "make_profile", make_profile)
    result = run(write_config(tmp_path))
    assert result.exit_code == 1
    assert "error: the engine has stored no profile" in result.stderr
    assert "Traceback" not in result.output


def test_a_wrong_setting_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "make_profile", lambda *_: pytest.fail("started"))
    result = run(write_config(tmp_path, engine={"max_num_seqs": 0}))
    assert result.exit_code == 2
    assert "engine.max_num_seqs" in result.stderr


def test_a_missing_model_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "make_profile", lambda *_: pytest.fail("started"))
    result = run(write_config(tmp_path, model={"source": str(tmp_path / "none")}))
    assert result.exit_code == 1
    assert "there is no folder" in result.stderr
