"""The unit of a single machine, by systemd's own checks; it is not run by systemd here."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conserve.cli.main import app
from conserve.config import load_settings
from conserve.launch.stack import START_TIMEOUT_S
from tests.unit.cluster.conftest import REPOSITORY

FOLDER = REPOSITORY / "cluster" / "systemd"
TEXT = (FOLDER / "conserve.service").read_text()
INSTALLED = "/opt/conserve/"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here (Debian: package systemd)"
)


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", TEXT, re.MULTILINE)


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in values("Environment") for pair in line.split())


def verify(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    unit = folder / "conserve.service"
    unit.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """The unit, for a program that is where it says."""
    program = tmp_path / ".venv" / "bin" / "conserve"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return TEXT.replace(INSTALLED, f"{tmp_path}/")


@needs_systemd
def test_systemd_has_nothing_to_say(tmp_path: Path, installed: str) -> None:
    done = verify(tmp_path, installed)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_systemd_says_what_is_wrong(tmp_path: Path, installed: str) -> None:
    assert "Colour" in verify(tmp_path, installed.replace("UMask=", "Colour=")).stderr


@needs_systemd
def test_little_is_left_to_the_service_that_it_does_not_need(tmp_path: Path, installed: str) -> None:
    unit = tmp_path / "conserve.service"
    unit.write_text(installed)
    # Of 0 to 100; 96 is a unit without any of these lines.
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=40", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_the_command_and_its_settings_are_ours() -> None:
    (command,) = values("ExecStart")
    program, *arguments = command.split()
    assert program == f"{INSTALLED}.venv/bin/conserve"
    assert arguments == ["up", "--block"]
    assert "up" in [command.name for command in app.registered_commands]
    settings = load_settings({}, environment())
    state, cache = settings.state_dir, Path(environment()["CONSERVE_CACHE"])
    assert [state, cache] == [
        Path("/var/lib", *values("StateDirectory")),
        Path("/var/cache", *values("CacheDirectory")),
    ]


def test_the_times_are_enough_for_what_they_are_for() -> None:
    (start,), (stop,) = values("TimeoutStartSec"), values("TimeoutStopSec")
    assert int(start) > START_TIMEOUT_S + 150  # Redis and Ray before it
    assert int(stop) >= 180
    assert values("KillMode") == ["mixed"]


def test_the_example_of_its_environment_has_settings_only() -> None:
    lines = [line.removeprefix("#") for line in (FOLDER / "conserve.env.example").read_text().splitlines()]
    found = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))
    found["CONSERVE_TENANTS"] = found["CONSERVE_TENANTS"].replace("64 hexadecimal digits", "0" * 64)
    settings = load_settings({}, found)
    assert settings.jobs.redis_url.startswith("rediss://")
    assert list(settings.tenants) == ["acme"]
