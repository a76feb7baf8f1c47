from __future__ import annotations

from pathlib import Path

import pytest

from conserve.models import revision
from conserve.models.manifest import MANIFEST_NAME
from conserve.models.revision import digest_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose weights are too large to be read whole."""
    monkeypatch.setattr(revision, "WHOLE_BYTES", 1_000)
    monkeypatch.setattr(revision, "SAMPLE_BYTES", 16)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"layers": 2}')
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(range(250)) * 40)
    return model


def test_a_copy_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in sorted(folder.iterdir(), reverse=True):
        (copy / file.name).write_bytes(file.read_bytes())
    assert digest_folder(copy) == digest_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_every_word_of_the_configuration_counts(folder: Path, name: str) -> None:
    before = digest_folder(folder)
    (folder / name).write_text((folder / name).read_text().replace("}", " }"))
    assert digest_folder(folder) != before


def test_other_weights_are_another_model(folder: Path) -> None:
    before = digest_folder(folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    digests = {before}
    for changed in (bytes(255 - byte for byte in content), content[:-1], content[:-1] + b"\0", b"\1" + content[1:]):
        weights.write_bytes(changed)
        digests.add(digest_folder(folder))
    assert len(digests) == 5
    weights.write_bytes(content)
    weights.rename(folder / "other.safetensors")
    assert digest_folder(folder) not in digests


def test_what_is_no_part_of_the_model_does_not_count(folder: Path) -> None:
    before = digest_folder(folder)
    (folder / MANIFEST_NAME).write_text("{}")
    (folder / "README.md").write_text("about")
    (folder / "original").mkdir()
    assert digest_folder(folder) == before
