"""From ConServe's settings to the `LLMConfig` that `ray.serve.llm` starts replicas from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import ray
from ray.serve.llm import LLMConfig

from conserve.config import Settings
from conserve.engine.arguments import add_extra_arguments, scheduler_arguments
from conserve.engine.vllm_compat import check_version
from conserve.models import resolve_model
from deployments.local_model import SkipDownload
from deployments.replica import ConServeReplica
from deployments.routing_config import find_routing
from deployments.scaling import find_scaling, find_spot_scaling

STREAM_BATCHING_INTERVAL_MS = 0
"""Ray Serve LLM gathers tokens for 50 ms by default, which the first token would pay for."""

SPOT_SUFFIX = "--spot"
NO_HOST = "none.invalid"
"""There never is such a host (RFC 6761)."""
SPARE_REQUESTS = 64
"""A replica is sent so many more requests than it lets in: it refuses at once what Serve would have wait."""
HEALTH_CHECK_PERIOD_S = 2.0
"""From the beginning of one check to that of the next, at least; replicas hold them, see `harvesting.HeldChecks`."""
HEALTH_CHECK_TIMEOUT_S = 30.0


def choose_device(settings: Settings) -> Literal["cpu", "gpu"]:
    """The device of the engines: what the settings say, or a GPU when the Ray cluster has one."""
    if settings.engine.device != "auto":
        return settings.engine.device
    has_gpu = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    return "gpu" if has_gpu else "cpu"


def build_llm_config(settings: Settings, *, spot: bool = False) -> LLMConfig:
    """The configuration of the replicas. Unpacks the default model if that is the one to serve.

    Args:
        settings: ConServe's.
        spot: Whether it is that of replicas on nodes that may vanish.

    Raises:
        ValueError: the model's folder does not exist.
        RuntimeError: our scheduler was not tested with this vLLM.
    """
    engine = settings.engine
    if engine.mode == "conserve":
        check_version()
    device = choose_device(settings)
    workers = engine.tensor_parallel_size
    engine_kwargs: dict[str, Any] = {
        **scheduler_arguments(engine, settings.slo, device),
        "tensor_parallel_size": workers,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "dtype": engine.dtype,
        "disable_log_stats": False,
        # Without any vLLM would fetch from everywhere.
        "allowed_media_domains": settings.requests.media_domains or [NO_HOST],
    }
    if settings.model.task == "embed":
        engine_kwargs["runner"] = "pooling"
    if engine.max_model_len is not None:
        engine_kwargs["max_model_len"] = engine.max_model_len
    if device == "cpu":
        # Compilation costs a minute at start and gains little on a CPU.
        engine_kwargs["enforce_eager"] = True
        engine_kwargs["kv_cache_memory_bytes"] = int(engine.kv_cache_gib * 2**30)
    else:
        engine_kwargs["gpu_memory_utilization"] = engine.gpu_memory_utilization
    engine_kwargs = add_extra_arguments(engine_kwargs, engine.extra_args)
    if settings.requests.max_output_tokens is not None:
        # For requests that say nothing; those that ask for more are refused before.
        most = {"max_new_tokens": settings.requests.max_output_tokens}
        engine_kwargs["override_generation_config"] = engine_kwargs.get("override_generation_config", {}) | most

    model = resolve_model(settings.model.source)
    is_folder = Path(model).is_dir()
    return LLMConfig(
        model_loading_config={"model_id": settings.model.served_name, "model_source": model},
        callback_config={"callback_class": SkipDownload} if is_folder else {},
        engine_kwargs=engine_kwargs,
        accelerator_type=engine.accelerator_type,
        accelerator_config={"kind": device},
        placement_group_config={"bundles": [{device.upper(): 1}] * workers},
        server_cls=ConServeReplica,
        log_engine_metrics=True,
        experimental_configs={"stream_batching_interval_ms": STREAM_BATCHING_INTERVAL_MS},
        deployment_config={
            "name": settings.model.served_name.replace("/", "--").replace(".", "_") + (SPOT_SUFFIX if spot else ""),
            **(find_spot_scaling(settings) if spot else find_scaling(settings)),
            "max_ongoing_requests": engine.max_num_seqs + settings.overload.max_waiting_requests + SPARE_REQUESTS,
            "max_queued_requests": settings.http.max_queued_requests,
            **find_routing(settings.routing),
            "health_check_period_s": HEALTH_CHECK_PERIOD_S,
            "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
            "graceful_shutdown_timeout_s": settings.http.finish_requests_s,
            # The bundles above hold what the engine needs; the replica process itself needs next to nothing.
            "ray_actor_options": {"num_cpus": 0, **({"resources": {settings.spot.resource: 1}} if spot else {})},
        },
    )
