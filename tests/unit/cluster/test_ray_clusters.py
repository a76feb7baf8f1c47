"""The files of Ray's cluster launcher, against the schema that comes with Ray; `ray up` is not run here."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from conserve.launch.haproxy_command import NAME, VARIABLE
from conserve.launch.ray_head import RAY_ENVIRONMENT
from conserve.launch.serve_proxy import PROXY_ENVIRONMENT
from tests.unit.cluster.conftest import REPOSITORY

FOLDER = REPOSITORY / "cluster" / "ray"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
FILES = ("on-prem.yaml", "aws.yaml")
INSTALLED = "/opt/conserve/"
"""Where the repository is on the nodes."""


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return found


def commands(content: dict[str, Any]) -> list[str]:
    return [line for key, lines in content.items() if key.endswith("_commands") for line in lines]


@pytest.mark.parametrize("name", FILES)
def test_files_follow_ray_s_schema(name: str) -> None:
    jsonschema.validate(read(name), SCHEMA)


def test_a_wrong_file_is_refused() -> None:
    with pytest.raises(jsonschema.ValidationError, match="min_workers"):
        jsonschema.validate({**read("on-prem.yaml"), "min_workers": 2}, SCHEMA)


@pytest.mark.parametrize("name", FILES)
def test_workers_are_within_their_limits(name: str) -> None:
    content = read(name)
    types = content.get("available_node_types", {})
    for kind in types.values():
        assert kind["min_workers"] <= kind["max_workers"] <= content["max_workers"]
    if types:
        assert content["head_node_type"] in types
    else:
        assert len(content["provider"]["worker_ips"]) == content["max_workers"]


@pytest.mark.parametrize("name", FILES)
def test_commands_are_shell_and_name_what_is_there(name: str) -> None:
    content = read(name)
    for command in commands(content):
        subprocess.run(["bash", "-n", "-c", command], check=True, timeout=60)
        for path in re.findall(rf"{INSTALLED}([\w./-]+)", command):
            assert path.startswith(".venv/bin/") or (REPOSITORY / path).exists(), path
    starts = [line for key in ("head", "worker") for line in content[f"{key}_start_ray_commands"]]
    # In the image the environment is the image's.
    assert "docker" in content or sum(f"{INSTALLED}cluster/ray/node.env" in line for line in starts) == 2


def test_options_of_ray_start_are_known() -> None:
    ray_program = Path(sys.executable).with_name("ray")
    help_text = subprocess.run(
        [ray_program, "start", "--help"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    known = set(re.findall(r"--[a-z][a-z-]+", help_text))
    for name in FILES:
        for command in commands(read(name)):
            if " start " in command:
                assert {word.split("=")[0] for word in shlex.split(command) if word.startswith("--")} <= known


def test_the_environment_is_that_of_a_head_of_our_own() -> None:
    lines = [line for line in (FOLDER / "node.env").read_text().splitlines() if not line.startswith("#")]
    found = dict(line.split("=", 1) for line in lines)
    command = f"{INSTALLED}.venv/bin/{NAME}"
    assert found == {**RAY_ENVIRONMENT, **PROXY_ENVIRONMENT, VARIABLE: command, "RAY_AUTH_MODE": "token"}


def test_every_cluster_wants_a_token() -> None:
    assert "--env RAY_AUTH_MODE=token" in read("aws.yaml")["docker"]["run_options"]
    for name in FILES:
        assert "~/.ray/auth_token" in read(name)["file_mounts"]
