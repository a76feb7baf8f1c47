"""All settings of a ConServe application, in one place.

`Settings` is the `args` block of the Serve application in `serve_config.yaml`. Every value can be overridden by an
environment variable named after its path: `jobs.redis_url` by `CONSERVE_JOBS__REDIS_URL`. Unknown keys and wrong
values are refused with the setting's name, the value given and what is allowed (`SettingsError`).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

ENV_PREFIX = "CONSERVE_"
ENV_NESTING = "__"

# Environment variables with our prefix that are not settings: where to find things, not how to behave.
ENV_NOT_SETTINGS = frozenset(
    {
        "CONSERVE_CACHE",
        "CONSERVE_CONFIG",
        "CONSERVE_DEVICE",
        "CONSERVE_STACK_ID",
        "CONSERVE_URL",
        "CONSERVE_UV",
    }
)
ENV_TEST_PREFIX = "CONSERVE_TEST_"

EMBEDDED_REDIS = "embedded"


class SettingsError(ValueError):
    """A setting is unknown or has a value that is not allowed. The message names it and says what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelSettings(_Section):
    """Which model is served, and under which name."""

    source: str = Field(
        "smollm2-135m-instruct",
        min_length=1,
        description="`smollm2-135m-instruct` (comes with set-up), a Hugging Face model id, or a folder.",
    )
    name: str | None = Field(
        None, min_length=1, description="The name clients send as `model`; by default the last part of `source`."
    )

    @property
    def served_name(self) -> str:
        """The name clients send as `model`."""
        return self.name or Path(self.source).name


class EngineSettings(_Section):
    """The vLLM engine of each replica."""

    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="`auto` takes GPUs when the Ray cluster has any, otherwise CPUs."
    )
    accelerator_type: str | None = Field(None, description="Ray's accelerator type, such as `H100`, when GPUs differ.")
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    max_model_len: int | None = Field(None, ge=64, description="Context length in tokens; the model's own by default.")
    max_num_seqs: int = Field(16, ge=1, le=4096, description="Sequences in one iteration.")
    max_num_batched_tokens: int = Field(512, ge=16, le=1_048_576, description="Tokens in one iteration.")
    kv_cache_gib: float = Field(1.0, gt=0, le=4096, description="KV cache of a CPU replica, in GiB.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1.0, description="Share of GPU memory the engine may take.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    cpu_threads_bind: str = Field(
        "auto",
        pattern=r"^(auto|nobind|\d+(-\d+)?(,\d+(-\d+)?)*(\|\d+(-\d+)?(,\d+(-\d+)?)*)*)$",
        description="Cores of a CPU replica: `auto` divides those of its node by `replicas`; or `0-3`, or `nobind`.",
    )
    extra_args: dict[str, Any] = Field(
        default_factory=dict, description="Further vLLM engine arguments, passed on as they are."
    )

    @field_validator("extra_args")
    @classmethod
    def _refuse_owned_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        owned = {
            "scheduling_policy": "ConServe needs `priority`",
            "model": "set `model.source`",
            "served_model_name": "set `model.name`",
            **{name: f"set `engine.{name}`" for name in cls.model_fields if name != "extra_args"},
        }
        for name in value:
            if name in owned:
                raise ValueError(f"`{name}` cannot be set here: {owned[name]}")
        return value


class HarvestSettings(_Section):
    """How much batch work runs beside online work."""

    enabled: bool = True
    max_window: int = Field(8, ge=0, le=4096, description="Offline requests in flight on one replica, at most.")
    shut_at_online_requests: int = Field(
        8, ge=1, description="The window shuts when this many online requests are running or waiting on the replica."
    )
    open_at_online_requests: int = Field(
        4, ge=0, description="A shut window opens again when no more than this many online requests are there."
    )
    shut_at_kv_usage: float = Field(0.85, gt=0, le=1, description="The window shuts at this share of KV blocks in use.")
    open_at_kv_usage: float = Field(0.6, ge=0, le=1, description="A shut window opens again at this share.")
    report_period_ms: int = Field(250, ge=20, le=10_000, description="Time between capacity reports and allotments.")
    allotment_ttl_ms: int = Field(5_000, ge=100, le=600_000, description="A replica goes alone when older than this.")

    @model_validator(mode="after")
    def _check_hysteresis(self) -> HarvestSettings:
        if self.open_at_online_requests >= self.shut_at_online_requests:
            raise ValueError("`open_at_online_requests` must be less than `shut_at_online_requests`")
        if self.open_at_kv_usage >= self.shut_at_kv_usage:
            raise ValueError("`open_at_kv_usage` must be less than `shut_at_kv_usage`")
        if self.allotment_ttl_ms < 2 * self.report_period_ms:
            raise ValueError("`allotment_ttl_ms` must be at least twice `report_period_ms`")
        return self


class JobsSettings(_Section):
    """The durable offline queue and its files."""

    redis_url: str = Field(
        EMBEDDED_REDIS,
        description="`embedded` (a server in the state folder), or a `redis://`, `rediss://` or `unix://` URL.",
    )
    namespace: str = Field(
        "conserve", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="Prefix of every key, one per deployment."
    )
    files_url: str | None = Field(
        None, description="Folder or fsspec URL of input and output files; `files` in the state folder by default."
    )
    lease_ms: int = Field(
        15_000, ge=200, le=3_600_000, description="A claimed request not renewed for so long is freed."
    )
    max_attempts: int = Field(5, ge=1, le=100, description="Times a request is tried before it goes to the error file.")
    request_timeout_s: float = Field(3_600, gt=0, description="One attempt at an offline request, at most.")
    commit_period_ms: int = Field(250, ge=1, le=60_000, description="Finished results are gathered for so long.")
    max_file_bytes: int = Field(200_000_000, ge=1, description="Size of an uploaded file.")
    max_batch_requests: int = Field(50_000, ge=1, description="Lines of one batch.")
    max_line_bytes: int = Field(10_000_000, ge=1_000, description="Length of one line of a batch.")
    max_active_batches: int = Field(1_000, ge=1, description="Batches not yet ended; a further one is refused (429).")
    max_window_s: int = Field(30 * 86_400, ge=60, description="Longest completion window.")

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        if value != EMBEDDED_REDIS and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(f"must be `{EMBEDDED_REDIS}` or start with redis://, rediss:// or unix://")
        return value


class HttpSettings(_Section):
    """Limits of the HTTP front."""

    max_queued_requests: int = Field(
        256, description="Online requests that may wait for a replica; further ones get 429. -1: no limit."
    )

    @field_validator("max_queued_requests")
    @classmethod
    def _check_queue_limit(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("must be -1 (no limit) or at least 1")
        return value


class Settings(_Section):
    """Everything that can be set. See the module's docstring for where the values come from."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    harvest: HarvestSettings = HarvestSettings()
    jobs: JobsSettings = JobsSettings()
    http: HttpSettings = HttpSettings()
    replicas: int = Field(1, ge=1, le=1024, description="Engine replicas.")
    state_dir: Path = Field(
        Path("~/.local/state/conserve"), description="Where the embedded Redis and, by default, files live."
    )

    @field_validator("state_dir")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def files_url(self) -> str:
        """Where input and output files live: a folder or an fsspec URL."""
        return self.jobs.files_url or str(self.state_dir / "files")

    def with_redis_url(self, redis_url: str) -> Settings:
        """The same settings with another Redis."""
        return self.model_copy(update={"jobs": self.jobs.model_copy(update={"redis_url": redis_url})})

    def to_args(self) -> dict[str, Any]:
        """The settings as plain values, as they stand in the `args` block of a Serve configuration."""
        return self.model_dump(mode="json")


def load_settings(args: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Makes `Settings` of the `args` block of a Serve configuration and of `CONSERVE_...` variables, which win.

    Raises:
        SettingsError: a key is unknown or a value is not allowed.
    """
    merged = _merge(dict(args or {}), _read_environment(os.environ if environ is None else environ))
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


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
            value = "" if isinstance(problem["input"], dict | BaseModel) else f" (it is {problem['input']!r})"
            lines.append(f"{path or 'settings'}: {what}{value}")
    return "\n".join(lines)


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
