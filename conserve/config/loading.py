"""Settings from the `args` block of a Serve configuration and from environment variables."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from conserve.config.redis_url import has_password
from conserve.config.sections import Settings

ENV_PREFIX = "CONSERVE_"
ENV_NESTING = "__"

# Environment variables with our prefix that are not settings: where to find things, not how to behave.
ENV_NOT_SETTINGS = frozenset(
    {
        "CONSERVE_CACHE",
        "CONSERVE_CONFIG",
        "CONSERVE_DEVICE",
        "CONSERVE_GRPC_HOST",
        "CONSERVE_PROXY_METRICS_HOST",
        "CONSERVE_STACK_ID",
        "CONSERVE_TLS_CERTIFICATE",
        "CONSERVE_TLS_KEY",
        "CONSERVE_TRACES",
        "CONSERVE_URL",
        "CONSERVE_UV",
    }
)
ENV_TEST_PREFIX = "CONSERVE_TEST_"

_SECRET = re.compile("@|password|secret|token", re.IGNORECASE)
"""In URLs with a user, and in options of URLs."""


class SettingsError(ValueError):
    """A setting is unknown or has a value that is not allowed. The message names it and says what is allowed."""


def load_settings(args: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Makes `Settings` of the `args` block of a Serve configuration and of `CONSERVE_...` variables, which win.

    Raises:
        SettingsError: a key is unknown or a value is not allowed.
    """
    _refuse_password(args or {})
    merged = _merge(dict(args or {}), _read_environment(os.environ if environ is None else environ))
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def _refuse_password(args: Mapping[str, Any]) -> None:
    """Refuses one where everybody sees it who sees the configuration: at Ray's dashboard, and in what Serve logs.

    Raises:
        SettingsError: there is one.
    """
    jobs = args.get("jobs")
    url = jobs.get("redis_url") if isinstance(jobs, Mapping) else None
    if isinstance(url, str) and has_password(url):
        raise SettingsError(
            "jobs.redis_url: no password in the configuration, which Ray's dashboard shows. Name a file that has it in "
            "jobs.redis_password_file, or set the variable CONSERVE_JOBS__REDIS_URL"
        )


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            base[key] = _merge(dict(base[key]), value)
        else:
            base[key] = value
    return base


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    fields = dict(_setting_fields(Settings))
    paths = {_variable_of(path): path for path in fields}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or variable in ENV_NOT_SETTINGS or variable.startswith(ENV_TEST_PREFIX):
            continue
        if variable not in paths:
            raise SettingsError(f"environment variable {variable}: there is no such setting.{_hint(variable, paths)}")
        target = found
        *sections, name = paths[variable]
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = _read_value(text, fields[paths[variable]])
    return found


def _variable_of(path: tuple[str, ...]) -> str:
    return ENV_PREFIX + ENV_NESTING.join(path).upper()


def _read_value(text: str, field: FieldInfo) -> Any:
    if field.annotation in (str, str | None, Path) or not text.strip():
        return text
    # YAML gives the types that the same text would have in serve_config.yaml.
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _setting_fields(
    section: type[BaseModel], prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _setting_fields(field.annotation, (*prefix, name))
        else:
            yield (*prefix, name), field


def _explain(error: ValidationError) -> str:
    lines = []
    names = [".".join(path) for path, _ in _setting_fields(Settings)]
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{path}: there is no such setting.{_hint(path, names)}")
        else:
            what = problem["msg"].removeprefix("Value error, ")
            is_hidden = isinstance(problem["input"], dict | BaseModel) or _may_hold_secret(problem)
            value = "" if is_hidden else f" (it is {problem['input']!r})"
            lines.append(f"{path or 'settings'}: {what}{value}")
    return "\n".join(lines)


def _may_hold_secret(problem: ErrorDetails) -> bool:
    """Whether what stands there may be a key or password, or hold one: it is not to be seen in any log."""
    path, value = problem["loc"], problem["input"]
    if path[:1] == ("tenants",) and (len(path) <= 2 or path[2] == "api_keys"):
        return True
    return path[:2] == ("engine", "extra_args") or (isinstance(value, str) and _SECRET.search(value) is not None)


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
