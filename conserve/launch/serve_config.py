"""`serve_config.yaml`: a Ray Serve configuration whose application's `args` are ConServe's settings."""

from __future__ import annotations

import copy
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


@dataclass(frozen=True)
class ServeConfig:
    """A checked configuration. `content` is what Ray Serve gets, with all settings resolved."""

    content: dict[str, Any]
    settings: Settings
    application: str
    http_host: str
    http_port: int

    def listening_on(self, http_port: int) -> ServeConfig:
        """The same configuration on another HTTP port."""
        content = copy.deepcopy(self.content)
        content.setdefault("http_options", {})["port"] = http_port
        return ServeConfig(content, self.settings, self.application, self.http_host, http_port)


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
    http_options = content.get("http_options") or {}
    if not isinstance(http_options, dict):
        raise SettingsError(f"{path}: `http_options` must be a mapping")
    port = http_options.get("port", DEFAULT_HTTP_PORT)
    if not isinstance(port, int) or not 1 <= port <= 65535:
        raise SettingsError(f"{path}: `http_options.port` must be a number from 1 to 65535 (it is {port!r})")
    host = http_options.setdefault("host", DEFAULT_HTTP_HOST)
    content["http_options"] = http_options
    return ServeConfig(content, settings, str(ours[0].get("name", "default")), str(host), port)


def drop_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without the `CONSERVE_...` variables that are settings."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(ENV_PREFIX) or name in ENV_NOT_SETTINGS or name.startswith(ENV_TEST_PREFIX)
    }
