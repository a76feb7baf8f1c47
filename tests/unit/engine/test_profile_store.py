from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from conserve.engine import profile_store
from conserve.engine.profile_store import ProfileSaver, load_profile, profile_key, save_profile
from conserve.engine.vllm_compat import VllmConfig
from conserve.policy.latency import IterationShape, LatencyModel, LatencyProfile


def make_config(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "model": "/models/tiny llama",
        "dtype": "torch.float32",
        "quantization": None,
        "enforce_eager": True,
        "cache_dtype": "auto",
        "block_size": 128,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
        "async_scheduling": False,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "backend": SimpleNamespace(name="CPU_ATTN"),
    } | changes
    section = SimpleNamespace(**values)
    names = ("model_config", "cache_config", "scheduler_config", "parallel_config", "attention_config")
    return SimpleNamespace(**dict.fromkeys(names, section))


@pytest.fixture
def model() -> LatencyModel:
    model = LatencyModel()
    for number in range(1, 60):
        shape = IterationShape().add_decode(10 * number) if number % 3 else IterationShape()
        if number % 2:
            shape = shape.add_prefill(4 * number, 0)
        model.observe(shape, 40 + shape.tokens)
    return model


@pytest.fixture
def profile(model: LatencyModel) -> LatencyProfile:
    return model.to_profile()


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_store, "_log", structlog.get_logger())


def test_a_saved_profile_is_found_by_an_engine_like_it(tmp_path: Path, profile: LatencyProfile) -> None:
    path = save_profile(tmp_path / "new", profile_key(make_config()), profile)
    assert path.name.startswith("tiny-llama-")
    assert load_profile(tmp_path / "new", profile_key(make_config())) == profile
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "/models/other"},
        {"dtype": "torch.bfloat16"},
        {"quantization": "fp8"},
        {"enforce_eager": False},
        {"max_num_seqs": 8},
        {"max_num_batched_tokens": 256},
        {"block_size": 16},
        {"tensor_parallel_size": 2},
        {"pipeline_parallel_size": 2},
        {"async_scheduling": True},
        {"backend": None},
    ],
)
def test_another_engine_does_not_find_it(tmp_path: Path, profile: LatencyProfile, change: dict[str, Any]) -> None:
    save_profile(tmp_path, profile_key(make_config()), profile)
    with capture_logs() as logs:
        assert load_profile(tmp_path, profile_key(make_config(**change))) is None
    assert not logs


@pytest.mark.parametrize(
    ("binding", "cores"),
    [("0-3", "4 cores"), ("4,6,8-9", "4 cores"), ("0-1|2-3", "4 cores"), ("5", "1 cores")],
)
def test_hardware_counts_the_cores_that_compute(monkeypatch: pytest.MonkeyPatch, binding: str, cores: str) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", binding)
    assert profile_key(make_config()).hardware.endswith(f", {cores}")


def test_unbound_threads_are_other_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "auto")
    bound = profile_key(make_config()).hardware
    assert bound.endswith(f", {len(os.sched_getaffinity(0))} cores")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    assert profile_key(make_config()).hardware != bound


def test_a_gpu_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(is_cpu=lambda: False, get_device_name=lambda: "NVIDIA H100")
    monkeypatch.setattr(profile_store, "current_platform", gpu)
    assert profile_key(make_config()).hardware == "NVIDIA H100"


def test_saving_again_replaces_it(tmp_path: Path, profile: LatencyProfile) -> None:
    key = profile_key(make_config())
    save_profile(tmp_path, key, profile)
    newer = profile.model_copy(update={"safety_factor": 1.25})
    save_profile(tmp_path, key, newer)
    assert load_profile(tmp_path, key) == newer


def break_text(stored: dict[str, Any]) -> str:
    return json.dumps(stored)[:-20]


def break_version(stored: dict[str, Any]) -> str:
    stored["profile"]["version"] = 0
    return json.dumps(stored)


def break_sums(stored: dict[str, Any]) -> str:
    stored["profile"]["sizes"][0]["gram"][0] = float("nan")
    return json.dumps(stored)


def swap_key(stored: dict[str, Any]) -> str:
    stored["key"]["model"] = "/elsewhere/tiny llama"
    return json.dumps(stored)


@pytest.mark.parametrize("damage", [break_text, break_version, break_sums, swap_key])
def test_a_file_that_cannot_be_used_is_reported_and_passed_over(
    tmp_path: Path, profile: LatencyProfile, damage: Any
) -> None:
    key = profile_key(make_config())
    path = save_profile(tmp_path, key, profile)
    path.write_text(damage(json.loads(path.read_text())))
    with capture_logs() as logs:
        assert load_profile(tmp_path, key) is None
    assert [(log["log_level"], log["path"]) for log in logs] == [("warning", str(path))]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, profile: LatencyProfile) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save_profile(tmp_path / "file", profile_key(make_config()), profile)


def test_profile_is_stored_once_for_each_request(tmp_path: Path, model: LatencyModel) -> None:
    key = profile_key(make_config())
    saver = ProfileSaver(tmp_path, key)
    saver.follow(0.0, model)
    assert not list(tmp_path.iterdir())
    for request in (1.0, 2.0):
        saver.follow(request, model)
        (path,) = tmp_path.iterdir()
        path.unlink()
        saver.follow(request, model)
        assert not list(tmp_path.iterdir())


def test_a_profile_that_cannot_be_stored_leaves_the_engine_alone(tmp_path: Path, model: LatencyModel) -> None:
    key = profile_key(make_config())
    (tmp_path / "file").write_text("")
    with capture_logs() as logs:
        ProfileSaver(tmp_path / "file", key).follow(1.0, model)
        ProfileSaver(tmp_path, key).follow(1.0, LatencyModel())
        ProfileSaver(None, key).follow(1.0, model)
    assert [log["log_level"] for log in logs] == ["warning", "warning"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_vllm_has_the_settings_of_the_key() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(VllmConfig)}
    for name in ("model_config", "cache_config", "scheduler_config", "parallel_config", "attention_config"):
        assert name in fields, f"vLLM's VllmConfig has no {name} any more"
    config = VllmConfig()
    for section, name in (
        (config.cache_config, "cache_dtype"),
        (config.cache_config, "block_size"),
        (config.scheduler_config, "max_num_batched_tokens"),
        (config.scheduler_config, "async_scheduling"),
        (config.parallel_config, "tensor_parallel_size"),
        (config.parallel_config, "pipeline_parallel_size"),
        (config.attention_config, "backend"),
    ):
        assert hasattr(section, name), f"vLLM's {type(section).__name__} has no {name} any more"
