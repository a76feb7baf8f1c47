"""`serve_config.yaml`: a Ray Serve configuration whose application's `args` are ConServe's settings."""

from __future__ import annotations

import copy
import dataclasses
import os
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
from conserve.launch.haproxy_config import ProxyConfigError, Tls, read_tls

IMPORT_PATH = "deployments.app:build_app"
DEFAULT_HTTP_HOST = "127.0.0.1"
DEFAULT_HTTP_PORT = 8000
DEFAULT_GRPC_PORT = 9000
_TLS_OPTIONS = ("ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True)
class ServeConfig:
    """A checked configuration. `content` is what Ray Serve gets, with all settings resolved.

    `grpc_port` is None where it names no gRPC services, `tls` where HTTP and gRPC are not encrypted.
    """

    content: dict[str, Any]
    settings: Settings
    application: str
    http_host: str
    http_port: int
    grpc_port: int | None
    tls: Tls | None = None

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

    def with_password_file(self, path: Path) -> ServeConfig:
        """The same configuration, which names a file that has the password of Redis."""
        settings = self.settings.with_password_file(path)
        content = copy.deepcopy(self.content)
        for application in content["applications"]:
            if application.get("import_path") == IMPORT_PATH:
                application["args"] = settings.to_args()
        return dataclasses.replace(self, content=content, settings=settings)

    def without_tls(self) -> ServeConfig:
        """The same configuration for a Serve that leaves encryption to HAProxy."""
        content = copy.deepcopy(self.content)
        for name in _TLS_OPTIONS:
            content["http_options"].pop(name, None)
        return dataclasses.replace(self, content=content)


def read_serve_config(path: Path, environ: Mapping[str, str] | None = None) -> ServeConfig:
    """Reads and checks a configuration; `CONSERVE_...` variables of `environ` override its settings.

    The password of Redis is in its settings, not in its content, which Ray's dashboard shows.

    Raises:
        SettingsError: the file is missing or no YAML, has no ConServe application, or a setting is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is no text in UTF-8") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not valid YAML: {_explain(error)}") from None
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
    tls = _read_tls(path, content["http_options"], os.environ if environ is None else environ)
    return ServeConfig(content, settings, str(ours[0].get("name", "default")), str(host), port, grpc_port, tls)


def _read_tls(path: Path, http_options: Mapping[str, Any], environ: Mapping[str, str]) -> Tls | None:
    """The files of Ray Serve's own options, or else those that the environment names."""
    certificate, key = (http_options.get(name) for name in _TLS_OPTIONS)
    if http_options.get("ssl_keyfile_password"):
        raise SettingsError(
            f"{path}: `http_options.ssl_keyfile_password`: give a key file without a password, mode 600"
        )
    if http_options.get("ssl_ca_certs"):
        raise SettingsError(f"{path}: `http_options.ssl_ca_certs`: clients' certificates need a proxy of your own")
    if bool(certificate) != bool(key):
        raise SettingsError(f"{path}: `http_options` needs both of {' and '.join(_TLS_OPTIONS)}, or neither")
    try:
        if certificate and key:
            return read_tls(Tls(Path(str(certificate)), Path(str(key))).to_environment())
        return read_tls(environ)
    except ProxyConfigError as error:
        raise SettingsError(f"TLS: {error}") from None


def _explain(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the line itself, which may have a key in it."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return type(error).__name__


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
