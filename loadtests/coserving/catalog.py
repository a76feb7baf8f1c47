"""The workloads of the benchmark by name and size; what each is for stands in its comment."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from conserve.config import EngineSettings
from conserve.simulator.workload import OfflineShape
from loadtests.coserving import results
from loadtests.coserving.workloads import OnlineShape, Size, Workload

_CPU_ENGINE: Final = EngineSettings(
    device="cpu", max_model_len=2_048, max_num_seqs=16, max_num_batched_tokens=2_048, kv_cache_gib=1.0
)
# Two engines share the GPU.
_GPU_ENGINE: Final = EngineSettings(
    device="gpu", max_model_len=16_384, max_num_seqs=128, max_num_batched_tokens=2_048, gpu_memory_utilization=0.45
)
_CPU_SUMMARIES: Final = OfflineShape(prompt_tokens=(1_300, 1_700), output_tokens=(48, 80))
_GPU_SUMMARIES: Final = OfflineShape(prompt_tokens=(4_000, 8_000), output_tokens=(128, 256))

# Conversations over long summarisation prompts.
_CHAT_CPU: Final = Workload(
    name="chat",
    size="cpu",
    engine=_CPU_ENGINE,
    kind="conv",
    online_share=0.3,
    offline=_CPU_SUMMARIES,
    offline_in_flight=32,
    decoding_share=0.4,
    fill_s=14.0,
    lead_s=12.0,
    length_scale=0.125,
)
_CHAT_GPU: Final = replace(
    _CHAT_CPU, size="gpu", engine=_GPU_ENGINE, offline=_GPU_SUMMARIES, offline_in_flight=256, length_scale=1.0
)


def _make_bursty(chat: Workload) -> Workload:
    """Code completion comes in bursts, with longer prompts and short outputs."""
    return replace(chat, name="bursty", kind="code", online_share=0.2)


def _make_tide(chat: Workload) -> Workload:
    """A day in one run: 6 to 60 % of what the engine can serve, 33 % on average; its lead is part of the day."""
    return replace(chat, name="tide", online_share=0.33, tide_ratio=10.0, lead_s=4.0)


def _make_pressure(chat: Workload, engine: EngineSettings, offline: OfflineShape) -> Workload:
    """Data generation holds all sequence slots and nearly all KV blocks for long; bursts of conversations on top."""
    return replace(
        chat,
        name="pressure",
        engine=engine,
        online_share=0.2,
        offline=offline,
        offline_in_flight=2 * engine.max_num_seqs,
        decoding_share=1.0,
        burst_cv=2.0,
    )


def _make_prefix(chat: Workload, engine: EngineSettings, offline: OfflineShape) -> Workload:
    """Offline requests in 16 groups, shuffled. The KV cache holds few of the prefixes at a time: order matters."""
    return replace(chat, name="prefix", engine=engine, offline=offline, offline_in_flight=8 * engine.max_num_seqs)


def _make_interrupt(chat: Workload, offline: OfflineShape, online: OnlineShape) -> Workload:
    """A steady stream of long prompts; short requests come at random moments of a pass, and are soon gone."""
    return replace(
        chat,
        name="interrupt",
        kind=None,
        online_share=0.04,
        offline=offline,
        online=online,
        length_scale=1.0,
        further_runs=(
            *(results.NO_SAFEPOINTS, results.NO_RESUME, results.FULL_PASSES, results.FULL_PASSES_NO_SAFEPOINTS),
            *(results.ALONE, results.ALONE_NO_SAFEPOINTS),
        ),
    )


# SmolLM2 takes 22.5 KiB of KV cache a token, Llama 3.1 8B 128 KiB, in blocks of 16 tokens on a GPU.
_ALL: Final = (
    _CHAT_CPU,
    _CHAT_GPU,
    _make_bursty(_CHAT_CPU),
    _make_bursty(_CHAT_GPU),
    _make_tide(_CHAT_CPU),
    _make_tide(_CHAT_GPU),
    _make_pressure(
        _CHAT_CPU,
        _CPU_ENGINE.model_copy(
            update={"max_num_seqs": 8, "kv_cache_gib": 0.13}
        ),  # 6,000 tokens, as many as eight of these hold on average
        OfflineShape(prompt_tokens=(300, 500), output_tokens=(512, 768)),
    ),
    _make_pressure(
        _CHAT_GPU,
        _GPU_ENGINE.model_copy(update={"max_num_seqs": 16, "extra_args": {"num_gpu_blocks_override": 6_000}}),
        OfflineShape(prompt_tokens=(4_000, 5_000), output_tokens=(1_024, 1_536)),
    ),
    _make_interrupt(_CHAT_CPU, OfflineShape((1_300, 1_700), (4, 8)), OnlineShape((24, 40), (4, 12))),
    _make_interrupt(_CHAT_GPU, OfflineShape((4_000, 8_000), (8, 16)), OnlineShape((100, 400), (8, 32))),
    _make_prefix(
        _CHAT_CPU,
        _CPU_ENGINE.model_copy(update={"kv_cache_gib": 0.3}),  # 14,000 tokens
        OfflineShape(prompt_tokens=(64, 160), output_tokens=(8, 24), groups=16, prefix_tokens=1_536),
    ),
    _make_prefix(
        _CHAT_GPU,
        _GPU_ENGINE.model_copy(update={"extra_args": {"num_gpu_blocks_override": 6_000}}),
        OfflineShape(prompt_tokens=(256, 768), output_tokens=(16, 64), groups=16, prefix_tokens=12_288),
    ),
)
WORKLOADS: Final[dict[tuple[str, Size], Workload]] = {(workload.name, workload.size): workload for workload in _ALL}
NAMES: Final = tuple(dict.fromkeys(workload.name for workload in _ALL))
