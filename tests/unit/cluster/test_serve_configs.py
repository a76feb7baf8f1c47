"""Every Serve configuration of the repository, as Ray Serve reads it and as we do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

from conserve.launch.serve_config import IMPORT_PATH, read_serve_config
from tests.unit.cluster.conftest import REPOSITORY

CONFIGS = sorted(REPOSITORY.glob("serve_config.yaml")) + sorted(REPOSITORY.glob("cluster/*/serve_config.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_ray_serve_and_we_take_it(path: Path) -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    config = read_serve_config(path, {})
    assert [application.import_path for application in schema.applications] == [IMPORT_PATH]
    assert (schema.http_options.host, schema.http_options.port) == (config.http_host, config.http_port)
    assert schema.grpc_options.port == config.grpc_port
    # What `conserve up` deploys is one, too, with all settings resolved.
    ServeDeploySchema.model_validate(config.content)


def test_all_have_the_same_grpc_services() -> None:
    rayservice = yaml.safe_load((REPOSITORY / "cluster" / "kubernetes" / "rayservice.yaml").read_text())
    contents = [yaml.safe_load(path.read_text()) for path in CONFIGS]
    options = [content["grpc_options"] for content in (*contents, yaml.safe_load(rayservice["spec"]["serveConfigV2"]))]
    assert all(each == options[0] for each in options)
    # Serve imports them in its proxies.
    assert len(ServeDeploySchema.model_validate(contents[0]).grpc_options.grpc_servicer_functions) == 2
    assert all(callable(function) for function in gRPCOptions(**options[0]).grpc_servicer_func_callable)


def test_there_are_some() -> None:
    assert len(CONFIGS) == 3


def test_ray_serve_refuses_what_it_does_not_know() -> None:
    content = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    with pytest.raises(ValidationError):
        ServeDeploySchema.model_validate({**content, "proxy_location": "Nowhere"})
