from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conserve.engine.revision import find_revision


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def make_config(model: str | Path, **changes: Any) -> Any:
    """The parts of a `VllmConfig` that are looked at."""
    values = {"model": str(model), "dtype": "float32", "quantization": None, "hf_config": SimpleNamespace()}
    cache = changes.pop("cache_dtype", "auto")
    return SimpleNamespace(
        model_config=SimpleNamespace(**(values | changes)), cache_config=SimpleNamespace(cache_dtype=cache)
    )


def test_a_folder_has_a_short_revision(folder: Path) -> None:
    revision = find_revision(make_config(folder))
    assert revision is not None
    assert len(revision) == 16
    assert revision.isalnum()
    assert find_revision(make_config(folder)) == revision
    (folder / "config.json").write_text("{ }")
    assert find_revision(make_config(folder)) != revision


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"quantization": "fp8"}, {"cache_dtype": "fp8"}])
def test_how_it_is_computed_counts(folder: Path, changes: dict[str, Any]) -> None:
    assert find_revision(make_config(folder, **changes)) != find_revision(make_config(folder))


def test_a_model_of_the_hub_is_known_by_its_commit() -> None:
    first, second = (
        find_revision(make_config("owner/name", hf_config=SimpleNamespace(_commit_hash=commit))) for commit in "ab"
    )
    assert first is not None
    assert first != second


def test_what_is_not_known_is_none(folder: Path) -> None:
    assert find_revision(make_config("owner/name")) is None
    config = folder / "config.json"
    config.unlink()
    config.symlink_to(folder / "missing.json")
    assert find_revision(make_config(folder)) is not None  # A broken link is no file.
