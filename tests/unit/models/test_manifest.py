from __future__ import annotations

from pathlib import Path

import pytest

from conserve.models import manifest
from conserve.models.manifest import MANIFEST_NAME, find_damage, write_manifest

SOURCE = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    write_manifest(tmp_path, SOURCE, 1)
    return tmp_path


def test_untouched_folder_is_whole(folder: Path) -> None:
    assert find_damage(folder, SOURCE, 1) is None
    assert find_damage(folder, SOURCE, 1, thorough=True) is None


def test_changed_bytes_are_found(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lLama"}', encoding="utf-8")
    assert find_damage(folder, SOURCE, 1) == "config.json has another checksum"


def test_changed_size_is_found(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(999))
    assert find_damage(folder, SOURCE, 1) == "model.safetensors has 999 bytes instead of 1000"


def test_missing_file_is_found(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert find_damage(folder, SOURCE, 1) == "model.safetensors is missing"


def test_large_files_are_hashed_when_thorough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "HASHED_BYTES", 100)
    (folder / "model.safetensors").write_bytes(b"x" + bytes(999))
    assert find_damage(folder, SOURCE, 1) is None
    assert find_damage(folder, SOURCE, 1, thorough=True) == "model.safetensors has another checksum"


@pytest.mark.parametrize(("source", "revision"), [("cd" * 32, 1), (SOURCE, 2)])
def test_other_source_or_revision_is_found(folder: Path, source: str, revision: int) -> None:
    assert find_damage(folder, source, revision) == "it was unpacked by another version"


def test_missing_or_broken_manifest_is_found(folder: Path) -> None:
    (folder / MANIFEST_NAME).write_text("{", encoding="utf-8")
    assert find_damage(folder, SOURCE, 1) == f"{MANIFEST_NAME} cannot be read"
    (folder / MANIFEST_NAME).unlink()
    assert find_damage(folder, SOURCE, 1) == f"{MANIFEST_NAME} is missing"
