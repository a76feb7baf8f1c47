"""Where passes can be stopped and continued, and why they cannot elsewhere."""

from __future__ import annotations

from typing import Any, Final

from conserve.engine.vllm_compat import VllmConfig, find_by_name

WORKERS: Final = {
    "cpu": "conserve.engine.cpu_worker.SafepointCPUWorker",
    "gpu": "conserve.engine.worker.SafepointWorker",
}
NO_SAFEPOINTS: Final = "a worker has not found the layers of the model, or is on another machine"
RESUMABLE: Final = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Models whose layers hand on hidden states and residual and nothing else."""


def has_safepoints(vllm_config: VllmConfig) -> bool:
    """Whether the workers of an engine are ours, or made from ours."""
    name = vllm_config.parallel_config.worker_cls
    if name in WORKERS.values():
        return True
    if name == "auto" or name.startswith("vllm."):
        return False
    from conserve.engine.worker import Safepoints  # imports much, and is rarely asked for

    return issubclass(find_by_name(name), Safepoints)


def explain_unstoppable(vllm_config: VllmConfig) -> str | None:
    """Why passes of this engine cannot be stopped between two layers; None if they can."""
    parallel: Any = vllm_config.parallel_config
    model: Any = vllm_config.model_config
    reasons = {
        "the workers are not ConServe's": not has_safepoints(vllm_config),
        "model runner V2 is in use, set VLLM_USE_V2_MODEL_RUNNER=0": vllm_config.use_v2_model_runner,
        "a KV connector would store blocks of a stopped pass": vllm_config.kv_transfer_config is not None,
        "the model keeps a state besides its KV cache": model.is_hybrid or model.has_inner_state,
        "other ranks of a mixture of experts would wait": parallel.data_parallel_size > 1,
        "stages of a pipeline overlap": parallel.pipeline_parallel_size > 1,
        "the workers are on several nodes": parallel.nnodes > 1,
        "micro-batches overlap": bool(getattr(parallel, "enable_dbo", False)),
        "not tried with multimodal models": model.is_multimodal_model,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def explain_unresumable(vllm_config: VllmConfig) -> str | None:
    """Why a stopped pass of this engine cannot be continued; None if it can."""
    if vllm_config.model_config.architecture not in RESUMABLE:
        return f"not tried with {vllm_config.model_config.architecture}"
    if vllm_config.lora_config is not None:
        return "not tried with LoRA"
    if vllm_config.scheduler_config.long_prefill_token_threshold > 0:
        return "long_prefill_token_threshold is set"
    return None
