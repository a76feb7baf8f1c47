from __future__ import annotations

from pathlib import Path

import pytest

from conserve.models import cache_folder, profiles_dir


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"CONSERVE_CACHE": "/own", "XDG_CACHE_HOME": "/shared"}, Path("/own")),
        ({"XDG_CACHE_HOME": "/shared"}, Path("/shared/conserve")),
        ({"CONSERVE_CACHE": "", "XDG_CACHE_HOME": "/shared"}, Path("/shared/conserve")),
        ({}, Path.home() / ".cache" / "conserve"),
        ({"CONSERVE_CACHE": "~/mine"}, Path.home() / "mine"),
        ({"CONSERVE_CACHE": "here"}, Path.cwd() / "here"),
    ],
)
def test_cache_folder_follows_the_environment(environ: dict[str, str], folder: Path) -> None:
    assert cache_folder(environ) == folder


def test_cache_folder_reads_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSERVE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert profiles_dir() == tmp_path / "profiles"
