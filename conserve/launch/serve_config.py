"""`serve_config.yaml`: a Ray Serve configuration whose application's `args` are ConServe's settings."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conserve.config import (
    ENV_NOT_SETTINGS,
    ENV_PREFIX,
    ENV_TEST_PREFIX,
    Settings,
    SettingsError,
    load_settings,
)

IMPORT_PATH = "deployments.app:build_app"
DEFAULT_HTTP_HOST = "127.0.0.1"
DEFAULT_HTTP_PORT = 8000
DEFAULT_GRPC_PORT = 9000


@dataclass(frozen=True)
class ServeConfig:
    """A checked configuration. `content` is what Ray Serve gets, with all settings resolved.

    `grpc_port` is None where it names no gRPC services.
    """

    content: dict[str, Any]
    settings: Settings
    application: str
    http_host: str
    http_port: int
    grpc_port: int | None

    def __post_init__(self) -> None:
        if self.grpc_port == self.http_port:
            raise SettingsError(
                f"`grpc_options.port` must be another one than `http_options.port`, which is {self.http_port}"
            )

    def listening_on(self, http_port: int | None = None, grpc_port: int | None = None) -> ServeConfig:
        """The same configuration on other ports.

        Raises:
            SettingsError: both are the same, or one is given for gRPC, of which the configuration has nothing.
        """
        content = copy.deepcopy(self.content)
        if http_port is not None:
            content["http_options"]["port"] = http_port
        if grpc_port is not None:
            if self.grpc_port is None:
                raise SettingsError(
                    "`grpc_options` names no `grpc_servicer_functions`, so there is nothing on that port"
                )
            content["grpc_options"]["port"] = grpc_port
        return dataclasses.replace(
            self, content=content, http_port=http_port or self.http_port, grpc_port=grpc_port or self.grpc_port
        )


def read_serve_config(path: Path, environ: Mapping[str, str] | None = None) -> ServeConfig:
    """Reads and checks a configuration; `CONSERVE_...` variables of `environ` override its settings.

    Raises:
        SettingsError: the file is missing or no YAML, has no ConServe application, or a setting is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("applications"), list):
        raise SettingsError(f"{path}: `applications` must be a list, as in a Ray Serve configuration")
    applications = [app for app in content["applications"] if isinstance(app, dict)]
    ours = [app for app in applications if app.get("import_path") == IMPORT_PATH]
    if len(ours) != 1:
        raise SettingsError(
            f"{path}: `applications` must have one with `import_path: {IMPORT_PATH}`; it has {len(ours)}"
        )
    args = ours[0].get("args") or {}
    if not isinstance(args, dict):
        raise SettingsError(f"{path}: `args` of the application must be a mapping of settings")
    settings = load_settings(args, environ)
    ours[0]["args"] = settings.to_args()
    port = _read_port(path, content, "http_options", DEFAULT_HTTP_PORT)
    host = content["http_options"].setdefault("host", DEFAULT_HTTP_HOST)
    grpc_port: int | None = _read_port(path, content, "grpc_options", DEFAULT_GRPC_PORT)
    if not content["grpc_options"].get("grpc_servicer_functions"):
        grpc_port = None  # Serve opens no port then.
    return ServeConfig(content, settings, str(ours[0].get("name", "default")), str(host), port, grpc_port)


def _read_port(path: Path, content: dict[str, Any], section: str, default: int) -> int:
    options = content.setdefault(section, {}) or {}
    if not isinstance(options, dict):
        raise SettingsError(f"{path}: `{section}` must be a mapping")
    content[section] = options
    port = options.get("port", default)
    if not isinstance(port, int) or not 1 <= port <= 65535:
        raise SettingsError(f"{path}: `{section}.port` must be a number from 1 to 65535 (it is {port!r})")
    return port


def drop_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without the `CONSERVE_...` variables that are settings."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(ENV_PREFIX) or name in ENV_NOT_SETTINGS or name.startswith(ENV_TEST_PREFIX)
    }
