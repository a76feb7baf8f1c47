"""Latency profiles as files: one for each model, engine settings and hardware."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from conserve.engine.vllm_compat import VllmConfig, current_platform, vllm_version
from conserve.policy.latency import LatencyModel, LatencyProfile

_log = structlog.get_logger(__name__)


class ProfileKey(BaseModel):
    """What decides how long an iteration takes. Engines whose keys are equal share a profile.

    `hardware` names the GPU; or the processor, and how many of its cores compute.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    vllm: str
    model: str
    dtype: str
    quantization: str | None
    kv_cache_dtype: str
    block_size: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    enforce_eager: bool
    async_scheduling: bool
    attention_backend: str | None
    hardware: str

    @property
    def file_name(self) -> str:
        """The name of the profile's file: the model's, for people, and a digest of everything."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()
        model = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(self.model).name).strip(".-")
        return f"{model or 'model'}-{digest[:16]}.json"


class StoredProfile(BaseModel):
    """The content of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: ProfileKey
    profile: LatencyProfile


def profile_key(vllm_config: VllmConfig) -> ProfileKey:
    """The key of an engine, as the engine's own process sees its settings and the hardware."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    backend = vllm_config.attention_config.backend
    return ProfileKey(
        vllm=vllm_version,
        model=model.model,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=None if model.quantization is None else str(model.quantization),
        kv_cache_dtype=str(cache.cache_dtype),
        block_size=cache.block_size,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        enforce_eager=bool(model.enforce_eager),
        async_scheduling=bool(scheduler.async_scheduling),
        attention_backend=None if backend is None else backend.name,
        hardware=_describe_hardware(),
    )


def load_profile(folder: Path, key: ProfileKey) -> LatencyProfile | None:
    """The stored profile of an engine; None if there is none, or if it cannot be used, which is logged as a warning."""
    path = folder / key.file_name
    try:
        stored = StoredProfile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("latency profile cannot be read; starting without", path=str(path), reason=error.strerror)
        return None
    except ValidationError as error:
        reason = error.errors(include_input=False, include_url=False)[0]["msg"]
        _log.warning("latency profile is broken or of another version; starting without", path=str(path), reason=reason)
        return None
    if stored.key != key:
        _log.warning("latency profile is of another engine; starting without", path=str(path))
        return None
    return stored.profile


def save_profile(folder: Path, key: ProfileKey, profile: LatencyProfile) -> Path:
    """Stores a profile in place of an earlier one. A reader sees the old or the new file as a whole.

    Returns:
        The file.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / key.file_name
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(StoredProfile(key=key, profile=profile).model_dump_json(indent=1))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


class ProfileSaver:
    """The scheduler's end of `Knobs.save_profile`: stores the model's profile each time that the knob has changed.

    Args:
        folder: Where to; None leaves all requests unanswered.
        key: Of this engine.
    """

    def __init__(self, folder: Path | None, key: ProfileKey) -> None:
        self._folder = folder
        self._key = key
        self._answered = 0.0

    def follow(self, requested: float, model: LatencyModel) -> None:
        """To be called in each step with the knob's value. A failure is logged; the engine goes on."""
        if requested == self._answered:
            return
        self._answered = requested
        if self._folder is None:
            return
        if not model.ready:
            _log.warning("no latency profile stored: the model has seen too few iterations")
            return
        try:
            save_profile(self._folder, self._key, model.to_profile())
        except OSError as error:
            _log.warning("latency profile cannot be stored", folder=str(self._folder), reason=error.strerror)


def _describe_hardware() -> str:
    if not current_platform.is_cpu():
        return str(current_platform.get_device_name())
    binding = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto")
    cores = _count_cores(binding) or len(os.sched_getaffinity(0))
    return f"{_read_cpu_model()}, {cores} cores" + (", threads not bound" if binding == "nobind" else "")


def _count_cores(binding: str) -> int:
    """The cores of a list such as `0-3,6|7-9`; 0 of a word such as `auto`."""
    ranges = re.findall(r"(\d+)(?:-(\d+))?", binding)
    return sum(int(last or first) - int(first) + 1 for first, last in ranges)


def _read_cpu_model() -> str:
    """The processor's name. ARM kernels give none; the numbers of maker and part stand for it there."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    if "model name" in fields:
        return fields["model name"]
    return f"CPU {fields.get('CPU implementer', '?')}/{fields.get('CPU part', '?')}"
