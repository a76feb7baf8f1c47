from __future__ import annotations

from pathlib import Path

import pytest

from conserve.models import ModelError, resolve_model, source


def test_default_name_is_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "ensure_default_model", lambda: tmp_path / "unpacked")
    assert resolve_model("smollm2-135m-instruct") == str(tmp_path / "unpacked")


def test_model_folder_is_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}", encoding="utf-8")
    assert resolve_model(str(tmp_path / "mine")) == str(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("mine") == str(tmp_path / "mine")  # absolute: replicas have another working folder
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/mine") == str(tmp_path / "mine")


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.source: .* there is no config\.json in it"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("path", ["/no/such/model", "./model", "../model", "~/no-such-model", "a/b/c", "models/"])
def test_path_that_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(ModelError, match=f"model.source: there is no folder '{path}'"):
        resolve_model(path)


@pytest.mark.parametrize("model", ["HuggingFaceTB/SmolLM2-360M-Instruct", "gpt2", "Qwen/Qwen2.5-0.5B"])
def test_hub_id_is_unchanged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model(model) == model


@pytest.mark.parametrize("text", ["", "two words", "owner/na me", "owner/", "modèle"])
def test_anything_else_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ModelError, match=r"model\.source: (must be .*a Hugging Face id|there is no folder)"):
        resolve_model(text)
