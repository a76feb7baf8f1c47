"""What iterations cost on a GPU, from its datasheet and the shape of the model: a roofline with stated efficiencies.

Matrix products of prompt tokens are bound by FLOP/s, those of a small batch by reading all weights, decodes by reading
their KV cache. The costs add up, as in the latency model of the engine and in ConServe (arXiv 2410.01228) section 4.3.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conserve.policy.latency_profile import LatencyProfile
from conserve.simulator.engine_costs import EngineCosts

_BYTES: Final = 2  # of a value in BF16
_BLOCK_TOKENS: Final = 16


class ProfileError(ValueError):
    """A profile is not known or cannot be used; the message says which there are, or what is wrong."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Gpu(_Entry):
    """A GPU by its datasheet; bandwidths are those of one direction."""

    name: str
    flops: float = Field(gt=0)
    memory_bytes_per_s: float = Field(gt=0)
    memory_bytes: float = Field(gt=0)
    nvlink_bytes_per_s: float = Field(gt=0)
    host_bytes_per_s: float = Field(gt=0)
    dollars_per_hour: float = Field(ge=0)
    source: str


class ModelShape(_Entry):
    """What of a model decides how long it computes."""

    name: str
    parameters: float = Field(gt=0)
    embedding_parameters: float = Field(ge=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    hidden: int = Field(gt=0)
    tensor_parallel: int = Field(gt=0)
    source: str

    @property
    def kv_bytes_per_token(self) -> int:
        """Of keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * _BYTES


class Assumption(_Entry):
    """A constant that no datasheet gives."""

    value: float
    source: str


class GpuProfile(_Entry):
    """One model on one kind of GPU.

    Attributes:
        name: `GPU/model`.
        gpus: Of one replica.
        dollars_per_hour: Of one replica.
        costs: Of its engine.
    """

    name: str
    gpus: int
    dollars_per_hour: float
    costs: EngineCosts


@lru_cache(maxsize=1)
def read_gpus() -> dict[str, Gpu]:
    """The GPUs that are known, by name."""
    return {name: Gpu.model_validate(entry) for name, entry in _read("gpus.yaml").items()}


@lru_cache(maxsize=1)
def read_models() -> dict[str, ModelShape]:
    """The models that are known, by name."""
    return {name: ModelShape.model_validate(entry) for name, entry in _read("models.yaml").items()}


@lru_cache(maxsize=1)
def read_assumptions() -> dict[str, Assumption]:
    """All constants that are not from datasheets, by name."""
    return {name: Assumption.model_validate(entry) for name, entry in _read("assumptions.yaml").items()}


def list_profiles() -> list[str]:
    """Names of all profiles."""
    return [f"{gpu}/{model}" for gpu in read_gpus() for model in read_models()]


def find_profile(name: str, measured: Path | None = None) -> GpuProfile:
    """A profile.

    Args:
        name: `GPU/model`, as `h100/llama-3.1-8b`.
        measured: A file of `conserve profile`, whose costs take the place of the computed ones.

    Raises:
        ProfileError: There is none of this name, the model does not fit, or the file is none.
    """
    gpu_name, _, model_name = name.partition("/")
    if name not in list_profiles():
        raise ProfileError(f"{name!r} is no profile; there are: {', '.join(list_profiles())}")
    values = {key: assumption.value for key, assumption in read_assumptions().items()}
    gpu, model = read_gpus()[gpu_name], read_models()[model_name]
    costs = compute_costs(name, gpu, model, values)
    if measured is not None:
        costs = costs.with_profile(read_measured(measured))
    ranks = model.tensor_parallel
    return GpuProfile(name=name, gpus=ranks, dollars_per_hour=gpu.dollars_per_hour * ranks, costs=costs)


def read_measured(path: Path) -> LatencyProfile:
    """The profile in a file of `conserve profile`.

    Raises:
        ProfileError: It cannot be read, or is none.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProfileError(f"{path}: cannot be read: {error}") from None
    try:
        return LatencyProfile.model_validate(content.get("profile", content))
    except (ValidationError, AttributeError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in problem["loc"]) or "file"
        raise ProfileError(f"{path}: is no file of `conserve profile`: {where}: {problem['msg']}") from None


def compute_costs(name: str, gpu: Gpu, model: ModelShape, values: dict[str, float]) -> EngineCosts:
    """The costs of iterations.

    Args:
        name: Of the profile, for errors.
        gpu: One of them; there are as many as the model's tensor parallelism.
        model: On all of them.
        values: Of the assumptions.

    Raises:
        ProfileError: The model does not fit.
    """
    ranks = model.tensor_parallel
    weight_bytes = _BYTES * model.parameters / ranks
    free_bytes = gpu.memory_bytes * values["memory_share"] - weight_bytes - values["reserved_bytes"]
    block_bytes = model.kv_bytes_per_token * _BLOCK_TOKENS
    if free_bytes < block_bytes / ranks * 64:
        raise ProfileError(f"{name}: {model.name} does not fit into {ranks} x {gpu.name}")
    flops = gpu.flops * values["matmul_efficiency"]
    bytes_per_s = gpu.memory_bytes_per_s * values["memory_efficiency"]
    token_flops = 2 * (model.parameters - model.embedding_parameters) / ranks
    pair_flops = 4 * model.layers * model.heads * model.head_dim / ranks
    reduces = 2 * model.layers if ranks > 1 else 0
    reduced_bytes = reduces * 2 * (ranks - 1) / ranks * model.hidden * _BYTES
    reduce_s = reduced_bytes / (gpu.nvlink_bytes_per_s * values["link_efficiency"])
    token_ms = (token_flops / flops + reduce_s) * 1e3
    return EngineCosts(
        iteration_ms=values["iteration_ms"]
        + model.layers * values["layer_ms"]
        + reduces * values["all_reduce_ms"]
        + weight_bytes / bytes_per_s * 1e3,
        token_ms=token_ms,
        attention_ms=pair_flops / (gpu.flops * values["attention_efficiency"]) * 1e3,
        prompt_ms=values["prompt_ms"],
        decode_ms=token_ms + values["sequence_ms"],
        context_ms=model.kv_bytes_per_token / ranks / bytes_per_s * 1e3,
        kv_blocks=int(free_bytes * ranks / block_bytes),
        block_size=_BLOCK_TOKENS,
        block_bytes=block_bytes,
        layers=model.layers,
        copy_bytes_per_s=gpu.host_bytes_per_s * values["copy_efficiency"] * ranks,
        host_kv_gib=values["host_kv_gib"] * ranks,
        stop_ms=values["stop_ms"],
        resume_ms=values["resume_ms"],
        stop_lag_layers=int(values["stop_lag_layers"]),
        safepoint_share=values["safepoint_share"],
        front_ms=values["front_ms"],
        noise=values["noise"],
    )


def _read(name: str) -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((resources.files("conserve.simulator.profiles") / name).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ProfileError(f"{name}: is no list of entries")
    return content
