"""All settings: names, meaning, limits and defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from conserve.config.autoscaling import MOST_REPLICAS, AutoscalingSettings, SpotSettings
from conserve.config.offline_sections import HarvestSettings, JobsSettings
from conserve.config.online_sections import OverloadSettings, RequestSettings
from conserve.config.redis_url import drop_password
from conserve.config.section import Section as _Section
from conserve.config.tenants import FlexSettings, TenantSettings, check_tenants

DEFAULT_CLASS = "default"
"""The class of online requests that name none."""


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

    task: Literal["generate", "embed"] = Field(
        "generate",
        description="`generate` answers chats and completions, `embed` embeddings (with `engine.mode: stock` only).",
    )

    @property
    def served_name(self) -> str:
        """The name clients send as `model`."""
        return self.name or Path(self.source).name


class EngineSettings(_Section):
    """The vLLM engine of each replica."""

    mode: Literal["conserve", "stock"] = Field(
        "conserve",
        description="`conserve` schedules by the objectives of `slo`; `stock` is vLLM's own scheduler with priorities.",
    )
    preempt: Literal["slo", "always", "never"] = Field(
        "slo",
        description="When a running pass of batch work is stopped between two layers for an online request: if waiting "
        "for its end would break the objective, whenever one arrives, or never.",
    )
    safepoint_interval_layers: int = Field(
        1, ge=1, le=1_000, description="Layers from one place where a pass can be stopped to the next."
    )
    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="`auto` takes GPUs when the Ray cluster has any, otherwise CPUs."
    )
    accelerator_type: str | None = Field(None, description="Ray's accelerator type, such as `H100`, when GPUs differ.")
    tensor_parallel_size: int = Field(1, ge=1, le=64, description="GPUs of a replica, which divide each layer.")
    max_model_len: int | None = Field(None, ge=64, description="Context length in tokens; the model's own by default.")
    max_num_seqs: int = Field(16, ge=1, le=4096, description="Sequences in one iteration.")
    max_num_batched_tokens: int = Field(512, ge=16, le=1_048_576, description="Tokens in one iteration.")
    kv_cache_gib: float = Field(1.0, gt=0, le=4096, description="KV cache of a CPU replica, in GiB.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1.0, description="Share of GPU memory the engine may take.")
    host_kv_gib: Annotated[float, Field(ge=0, le=4096)] | Literal["auto"] = Field(
        "auto",
        description="Host memory of a replica for KV blocks of batch work, in GiB, so that a preempted request goes on "
        "where it was; 0 computes it again. `auto`: 4, or a quarter of what is available if that is less.",
    )
    host_copy_share: float = Field(
        0.1, gt=0, le=1.0, description="Part of the time in which KV blocks may be copied to host memory."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Numbers of weights and KV cache; `auto`: those that the model was published in."
    )
    cpu_threads_bind: str = Field(
        "auto",
        pattern=r"^(auto|nobind|\d+(-\d+)?(,\d+(-\d+)?)*(\|\d+(-\d+)?(,\d+(-\d+)?)*)*)$",
        description="Cores of a CPU replica: `auto` divides those of its node by `replicas`; or `0-3`, or `nobind`.",
    )
    stall_s: float = Field(
        120.0,
        ge=10,
        le=3_600,
        description="An engine with online requests that ends no iteration for so long is taken for dead; its replica "
        "is replaced.",
    )
    extra_args: dict[str, Any] = Field(
        default_factory=dict, description="Further vLLM engine arguments, passed on as they are."
    )

    @field_validator("host_kv_gib", mode="wrap")
    @classmethod
    def _name_what_is_allowed(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> float | Literal["auto"]:
        try:
            checked: float | Literal["auto"] = handler(value)
        except ValidationError:
            # One message, in place of one for each kind of value.
            raise ValueError("must be `auto`, or GiB from 0 to 4096") from None
        return checked

    @field_validator("extra_args")
    @classmethod
    def _refuse_owned_arguments(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        owned = {
            "scheduling_policy": "ConServe needs `priority`",
            "model": "set `model.source`",
            "served_model_name": "set `model.name`",
            "allowed_media_domains": "set `requests.media_domains`",
            "allowed_local_media_path": "requests name no files",
            **{name: f"set `engine.{name}`" for name in cls.model_fields if name != "extra_args"},
        }
        if info.data.get("mode") == "conserve":
            owned["scheduler_cls"] = "ConServe has its own; set `engine.mode: stock` to use another"
            # Requests of several stages or engines overlap; the latency model takes iterations one after the other.
            if value.get("pipeline_parallel_size", 1) != 1:
                owned["pipeline_parallel_size"] = "set `engine.tensor_parallel_size`, or `engine.mode: stock`"
            if value.get("data_parallel_size", 1) != 1:
                owned["data_parallel_size"] = "set `replicas`, or `engine.mode: stock`"
            # The latency model and the token budget take a decode for one token.
            if value.get("speculative_config") is not None:
                owned["speculative_config"] = "not with ConServe's scheduler; set `engine.mode: stock`"
            if not value.get("enable_chunked_prefill", True):
                owned["enable_chunked_prefill"] = "offline prompts are computed in parts; or set `engine.mode: stock`"
        for name in value:
            if name in owned:
                raise ValueError(f"`{name}` cannot be set here: {owned[name]}")
        additional = value.get("additional_config", {})
        if not isinstance(additional, dict):
            raise ValueError("`additional_config` must be a mapping")
        if "conserve" in additional:
            raise ValueError("`additional_config.conserve` cannot be set here: ConServe sets it itself")
        return value


Milliseconds = Annotated[float, Field(gt=0, le=3_600_000)]


class RequestClass(_Section):
    """The latency objectives of a class of online requests."""

    ttft_slo_ms: Milliseconds = Field(description="Time to the first token.")
    tbt_slo_ms: Milliseconds = Field(description="Time between two tokens.")


class SloSettings(_Section):
    """What online requests are promised; batch work gets the rest. A client names a class in the field `slo_class`."""

    ttft_slo_ms: Milliseconds = Field(1_000, description="Time to the first token, of requests that name no class.")
    tbt_slo_ms: Milliseconds = Field(100, description="Time between two tokens, of requests that name no class.")
    classes: dict[str, RequestClass] = Field(
        default_factory=dict, max_length=100, description="Further classes by name, each with its own two objectives."
    )

    @field_validator("classes")
    @classmethod
    def _check_names(cls, value: dict[str, RequestClass]) -> dict[str, RequestClass]:
        for name in value:
            if name == DEFAULT_CLASS:
                raise ValueError(
                    f"`{name}` is the class of requests that name none: set `slo.ttft_slo_ms` and the like"
                )
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", name):
                raise ValueError(
                    f"{name!r} is no name for a class: at most 32 lower-case letters, digits, `_` and `-`, a letter or "
                    "digit first"
                )
        return value

    def by_priority(self) -> dict[str, RequestClass]:
        """All classes by name; the position of a class is the priority of its requests in the engine.

        The one with the shortest TTFT objective goes first; among equals `default`, then by name.
        """
        default = RequestClass(ttft_slo_ms=self.ttft_slo_ms, tbt_slo_ms=self.tbt_slo_ms)
        classes = {DEFAULT_CLASS: default, **dict(sorted(self.classes.items()))}
        return dict(sorted(classes.items(), key=lambda item: item[1].ttft_slo_ms))


class HttpSettings(_Section):
    """Limits of the front."""

    max_queued_requests: int = Field(
        256, ge=1, le=100_000, description="Online requests that may wait for a replica; further ones get 429."
    )

    keys: Literal["auto", "required", "none"] = Field(
        "auto",
        description="Who needs an API key. `auto`: everybody, unless there has never been a key, the front listens on "
        "loopback and the caller is on this machine; `required`: everybody; `none`: nobody, since something in front "
        "checks who calls.",
    )
    keys_for_online: bool = Field(True, description="Whether online requests need a key, too, where keys are needed.")
    fronts: int = Field(
        1, ge=1, le=64, description="Processes of the front; with two or more, on several nodes, one may be lost."
    )
    finish_requests_s: float = Field(
        20.0,
        ge=1,
        le=3_600,
        description="A replica that is told to go ends after so long at the latest, whatever online requests it has.",
    )
    replica_silence_s: float = Field(
        20.0,
        ge=1,
        le=600,
        description="A replica that says nothing of an online request for so long is taken for lost: another one is "
        "asked, or an answer that has begun ends with an error.",
    )
    replica_wait_s: float = Field(
        300.0,
        ge=1,
        le=3_600,
        description="An online request for which no replica has had room for so long is refused (503).",
    )
    max_open_requests: int = Field(
        2_000,
        ge=1,
        le=100_000,
        description="Online requests, streams among them, that are open at once at one front; further ones get 429.",
    )
    max_body_bytes: int = Field(
        16 << 20,
        ge=1_024,
        le=1 << 30,
        description="Body of an HTTP request; further bytes get 413. Uploads have `jobs.max_file_bytes`.",
    )
    max_header_bytes: int = Field(
        16_384, ge=1_024, le=1 << 20, description="Address and headers of an HTTP request; more get 431."
    )
    body_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3_600,
        description="So long is waited for a body in all, then 408; uploads: for each piece, 60 s.",
    )


class RoutingSettings(_Section):
    """Which replica an online request goes to."""

    policy: Literal["slo", "serve"] = Field(
        "slo",
        description="`slo`: the lowest predicted time to the first token; `serve`: Ray Serve's own, the shorter of two "
        "queues of online requests.",
    )
    report_period_ms: int = Field(
        250,
        ge=100,
        le=10_000,
        description="How often each replica says what an online request would find there; longer with hundreds.",
    )


class TracingSettings(_Section):
    """OpenTelemetry traces of requests and batches. What the SDK reads from `OTEL_*` variables counts besides."""

    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/@]+(/\S*)?$",
        description="The URL of a collector, such as `http://127.0.0.1:4317`; without one nothing is traced. Its keys "
        "belong in the variable `OTEL_EXPORTER_OTLP_HEADERS`.",
    )
    protocol: Literal["grpc", "http/protobuf"] = Field(
        "grpc", description="How spans are sent there; collectors take the second one at port 4318."
    )
    sample_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Part of the traces that is recorded, of those that begin here; clients that send a `traceparent` "
        "decide themselves. By default as `OTEL_TRACES_SAMPLER` says, which is all of them without it.",
    )


class Settings(_Section):
    """Everything that can be set: the `args` block of `serve_config.yaml`."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    slo: SloSettings = SloSettings()
    harvest: HarvestSettings = HarvestSettings()
    jobs: JobsSettings = JobsSettings()
    flex: FlexSettings = FlexSettings()
    tenants: dict[str, TenantSettings] = Field(
        default_factory=dict,
        max_length=10_000,
        description="Tenants by name: what those may have that are not to have the defaults.",
    )
    http: HttpSettings = HttpSettings()
    requests: RequestSettings = RequestSettings()
    overload: OverloadSettings = OverloadSettings()
    routing: RoutingSettings = RoutingSettings()
    tracing: TracingSettings = TracingSettings()
    replicas: int = Field(
        1, ge=1, le=MOST_REPLICAS, description="Engine replicas; with `autoscaling.max_replicas`, the fewest."
    )
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    spot: SpotSettings = SpotSettings()
    state_dir: Path = Field(
        Path("~/.local/state/conserve"), description="Where the embedded Redis and, by default, files live."
    )

    @model_validator(mode="after")
    def _check_task(self) -> Settings:
        if self.model.task == "embed" and self.engine.mode != "stock":
            raise ValueError("`model.task: embed` needs `engine.mode: stock`: ConServe's scheduler is for generation")
        return self

    @model_validator(mode="after")
    def _check_replicas(self) -> Settings:
        most = self.autoscaling.max_replicas
        if most is not None and most < self.replicas:
            raise ValueError(f"`autoscaling.max_replicas` ({most}) must be at least `replicas` ({self.replicas})")
        return self

    @field_validator("tenants")
    @classmethod
    def _check_tenants(cls, value: dict[str, TenantSettings]) -> dict[str, TenantSettings]:
        check_tenants(value)
        return value

    @field_validator("state_dir")
    @classmethod
    def _make_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def files_url(self) -> str:
        """Where input and output files live: a folder or an fsspec URL."""
        return self.jobs.files_url or str(self.state_dir / "files")

    @property
    def most_replicas(self) -> int:
        """So many replicas there may be at a time."""
        return (self.autoscaling.max_replicas or self.replicas) + self.harvest.scale_for_deadlines

    def with_redis_url(self, redis_url: str) -> Settings:
        """The same settings with another Redis."""
        return self.model_copy(update={"jobs": self.jobs.model_copy(update={"redis_url": redis_url})})

    def with_password_file(self, path: Path | None) -> Settings:
        """The same settings with the password of Redis in a file, if one was in the URL, and in no case there."""
        url = drop_password(self.jobs.redis_url)
        if url == self.jobs.redis_url:
            return self
        return self.model_copy(
            update={"jobs": self.jobs.model_copy(update={"redis_url": url, "redis_password_file": path})}
        )

    def to_args(self) -> dict[str, Any]:
        """The settings as plain values, as they stand in the `args` block of a Serve configuration, which many see.

        The password of Redis is not among them.
        """
        return self.with_password_file(None).model_dump(mode="json")
