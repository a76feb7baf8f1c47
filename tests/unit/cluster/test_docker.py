"""The image's and the compose files. No Docker runs here: docs/deployment.md says how the steps were run by hand."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from conserve.config import load_settings
from conserve.launch.haproxy_command import NAME, VARIABLE
from conserve.launch.ray_head import RAY_ENVIRONMENT
from conserve.launch.serve_config import read_serve_config
from conserve.launch.serve_proxy import PROXY_ENVIRONMENT
from tests.unit.cluster.conftest import REPOSITORY
from tests.unit.cluster.dockerfile import Instruction, Stage, environment, lineage, read_stages

DOCKER = REPOSITORY / "cluster" / "docker"
TARGETS = ("cpu", "gpu", "gpu-aws")


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return read_stages(DOCKER / "Dockerfile")


def context() -> list[str]:
    """What `.dockerignore` lets through, which names it one by one."""
    lines = [line.strip() for line in (REPOSITORY / ".dockerignore").read_text().splitlines()]
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return [rule.removeprefix("!") for rule in rules if rule.startswith("!")]


def single(instructions: list[Instruction], name: str) -> Instruction:
    """The last one of a kind, which is the one that counts."""
    return [each for each in instructions if each.name == name][-1]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_stage_is_known_before_it_is_used(stages: dict[str, Stage]) -> None:
    known: list[str] = []
    for stage in stages.values():
        assert stage.base in known or stage.base == "debian:bookworm-slim"
        sources = {each.options["from"] for each in stage.instructions if "from" in each.options}
        assert sources <= set(known)
        known.append(stage.name)
    assert set(TARGETS) <= set(known)


def test_what_is_copied_is_in_the_context(stages: dict[str, Stage]) -> None:
    allowed = context()
    for path in allowed:
        assert (REPOSITORY / path).exists(), path
    for stage in stages.values():
        for each in stage.instructions:
            if each.name != "COPY" or "from" in each.options:
                continue
            for source in each.words()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert any(source == path or source.startswith(f"{path}/") for path in allowed), source


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_setup_is_called_as_it_wants_to_be_and_has_all_it_needs(stages: dict[str, Stage], device: str) -> None:
    steps = lineage(stages, f"build-{device}")
    command = single(steps, "RUN").words()
    assert command == ["python3.11", "requirements/install.py", "--device", device]
    asked = [sys.executable, str(REPOSITORY / command[1]), *command[2:], "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    copied = {source for each in steps if each.name == "COPY" for source in each.words()[:-1]}
    packages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["uv"]["build-backend"]["module-name"]
    for package in packages:
        assert f"{package}/__init__.py" in copied
    assert {"pyproject.toml", "requirements", "conserve/models", "deployments/protos"} <= copied
    # Set-up unpacks the model with this package alone.
    for module in (REPOSITORY / "conserve" / "models").glob("*.py"):
        for name in re.findall(r"^\s*(?:from|import) (conserve[\w.]*)", module.read_text(), re.MULTILINE):
            assert name.startswith("conserve.models")


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_starts_the_stack_as_an_ordinary_user(stages: dict[str, Stage], target: str) -> None:
    steps = lineage(stages, target)
    assert single(steps, "USER").rest == "1000:1000"
    assert single(steps, "ENTRYPOINT").words() == ["tini", "--"]
    assert single(steps, "CMD").words() == ["conserve", "up", "--block"]
    health = single(steps, "HEALTHCHECK")
    assert health.rest.startswith("CMD [")
    settings = {name: value for name, value in environment(steps).items() if name.startswith("CONSERVE_")}
    config = read_serve_config(DOCKER / "serve_config.yaml", settings)
    assert f"http://127.0.0.1:{config.http_port}/health" in health.rest
    assert single(steps, "EXPOSE").rest == f"{config.http_port} {config.grpc_port}"
    assert config.http_host == "0.0.0.0"
    assert single(steps, "COPY").options["link"] == ""
    installed = [each.words()[-1] for each in steps if each.name == "COPY"]
    # Set-up has made the gRPC stubs where they are copied from.
    assert "deployments/protos" in installed
    assert settings["CONSERVE_CONFIG"] in installed
    assert {".venv", "conserve", "deployments"} <= set(installed)


@pytest.mark.parametrize("target", TARGETS)
def test_the_environment_is_that_of_a_head_of_our_own(stages: dict[str, Stage], target: str) -> None:
    wanted = {**RAY_ENVIRONMENT, **PROXY_ENVIRONMENT, VARIABLE: f"/opt/conserve/.venv/bin/{NAME}"}
    assert wanted.items() <= environment(lineage(stages, target)).items()


# Compose.


def read_compose(*names: str) -> list[dict[str, Any]]:
    return [yaml.safe_load((DOCKER / name).read_text()) for name in names]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_follow_its_specification(name: str) -> None:
    compose_spec.PyCompose.from_yaml((DOCKER / name).read_text()).to_spec()


def test_a_wrong_compose_file_is_refused() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    with pytest.raises(ValueError, match="restart"):
        compose_spec.PyCompose.from_yaml(text.replace("unless-stopped", "sometimes"))


def test_compose_builds_our_targets_and_overrides_what_is_there(stages: dict[str, Stage]) -> None:
    base, over = read_compose("compose.yaml", "compose.gpu.yaml")
    build = base["services"]["conserve"]["build"]
    assert (DOCKER / build["context"]).resolve() == REPOSITORY
    assert (REPOSITORY / build["dockerfile"]).is_file()
    for content in (base, over):
        assert content["services"]["conserve"]["build"]["target"] in stages
    assert over["services"].keys() <= base["services"].keys()
    for service in base["services"].values():
        volumes = {volume.split(":")[0] for volume in service["volumes"]}
        assert all(volume in base["volumes"] or (DOCKER / volume).is_dir() for volume in volumes)
        assert service.get("depends_on", {}).keys() <= base["services"].keys()


def test_compose_sets_what_is_a_setting(stages: dict[str, Stage]) -> None:
    base, over = read_compose("compose.yaml", "compose.gpu.yaml")
    found = {**base["services"]["conserve"]["environment"], **over["services"]["conserve"]["environment"]}
    found = {name: value.replace("${REDIS_PASSWORD:?set it in .env}", "p") for name, value in found.items()}
    settings = load_settings({}, {**environment(lineage(stages, "gpu")), **found})
    assert settings.jobs.redis_url == "redis://conserve:p@redis:6379/0"
    assert settings.engine.device == "gpu"
    mounted = {volume.split(":")[1] for volume in base["services"]["conserve"]["volumes"]}
    assert {str(settings.state_dir), "/var/cache/conserve"} == mounted


def test_every_container_is_unprivileged_and_writes_to_its_volumes_only() -> None:
    (base,) = read_compose("compose.yaml")
    for service in base["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
    assert base["services"]["redis"]["user"] == "999:999"
    assert base["services"]["conserve"]["environment"]["HOME"] in {"/var/lib/conserve"}


def test_no_secret_stands_in_a_command() -> None:
    (base,) = read_compose("compose.yaml")
    for service in base["services"].values():
        said = f"{service.get('command')} {service.get('entrypoint')} {service.get('healthcheck')}"
        assert "PASSWORD" not in said
