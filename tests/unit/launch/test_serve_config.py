from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from conserve.config import SettingsError
from conserve.launch.serve_config import read_serve_config

OURS = {"name": "conserve", "import_path": "deployments.app:build_app", "args": {"replicas": 2}}


def write(folder: Path, content: object) -> Path:
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_settings_are_resolved_into_the_configuration(tmp_path: Path) -> None:
    path = write(tmp_path, {"http_options": {"port": 9000}, "applications": [OURS]})
    config = read_serve_config(path, {"CONSERVE_STATE_DIR": "/tmp/x"})
    assert (config.settings.replicas, config.http_host, config.http_port) == (2, "127.0.0.1", 9000)
    args = config.content["applications"][0]["args"]
    assert (args["replicas"], args["state_dir"]) == (2, "/tmp/x")


def test_other_port_leaves_the_rest(tmp_path: Path) -> None:
    config = read_serve_config(write(tmp_path, {"applications": [OURS]}), {})
    moved = config.listening_on(8123)
    assert (moved.http_port, moved.content["http_options"]["port"], moved.grpc_port) == (8123, 8123, None)
    assert config.http_port == 8000
    assert moved.content["applications"] == config.content["applications"]


def test_grpc_has_a_port_where_services_are_named(tmp_path: Path) -> None:
    options = {"grpc_servicer_functions": ["m.f"]}
    config = read_serve_config(write(tmp_path, {"applications": [OURS], "grpc_options": options}), {})
    assert config.grpc_port == 9000
    moved = config.listening_on(grpc_port=8124)
    assert (moved.http_port, moved.grpc_port) == (8000, 8124)
    assert moved.content["grpc_options"] == {**options, "port": 8124}
    with pytest.raises(SettingsError, match="must be another one"):
        config.listening_on(http_port=9000)
    without = read_serve_config(write(tmp_path, {"applications": [OURS], "grpc_options": {"port": 9001}}), {})
    assert without.grpc_port is None
    with pytest.raises(SettingsError, match="grpc_servicer_functions"):
        without.listening_on(grpc_port=8124)


def test_the_repository_s_own_configuration_is_right() -> None:
    path = Path(__file__).parents[3] / "serve_config.yaml"
    assert read_serve_config(path, {}).application == "conserve"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([], "applications"),
        ({}, "applications"),
        ({"applications": [{"import_path": "other:app"}]}, "deployments.app:build_app"),
        ({"applications": [OURS, OURS]}, "has 2"),
        ({"applications": [{**OURS, "args": [1]}]}, "args"),
        ({"applications": [{**OURS, "args": {"replica": 2}}]}, "Did you mean replicas"),
        ({"applications": [OURS], "http_options": {"port": 0}}, "http_options.port"),
        ({"applications": [OURS], "http_options": 5}, "http_options"),
        ({"applications": [OURS], "grpc_options": [9000]}, "grpc_options"),
        ({"applications": [OURS], "grpc_options": {"port": "9000"}}, "grpc_options.port"),
        (
            {"applications": [OURS], "grpc_options": {"port": 8000, "grpc_servicer_functions": ["m.f"]}},
            "must be another one than `http_options.port`",
        ),
    ],
)
def test_wrong_configuration_is_refused(tmp_path: Path, content: object, part: str) -> None:
    with pytest.raises(SettingsError, match=part):
        read_serve_config(write(tmp_path, content), {})


def test_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read"):
        read_serve_config(tmp_path / "none.yaml", {})
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [", encoding="utf-8")
    with pytest.raises(SettingsError, match="not valid YAML"):
        read_serve_config(broken, {})
