"""A recording in the simulator: the same requests, the same engine, and costs that were measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from conserve.policy.latency import FEATURES, IterationShape
from conserve.policy.least_squares import solve_nonnegative
from conserve.simulator.cluster import Cluster
from conserve.simulator.engine_costs import LARGE_TOKENS, EngineCosts
from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.metrics import Metrics
from conserve.simulator.policies import POLICIES, SimPolicy
from conserve.simulator.supply import EndlessSupply
from conserve.simulator.workload import Arrival
from loadtests.validation.recording import KV_BYTES_PER_TOKEN, Recording

FRONT_MS: Final = 6.0
"""From when a request is due to the scheduler and from the end of an iteration to the client, measured without load."""
STOP_MS: Final = 8.0
COPY_BYTES_PER_S: Final = 4e9
LAYERS: Final = 30
_POLICY_OF: Final = {
    "online-only": "online-only",
    "offline-only": "offline-only",
    "stock-coserve": "stock-priority",
    "stock-tuned": "stock-priority",
    "ceiling": "ceiling",
}


def fit_costs(recordings: Iterable[Recording]) -> EngineCosts:
    """The costs of iterations, by relative least squares, from all whole iterations of the recordings."""
    shapes = [pair for recording in recordings for pair in recording.list_shapes()]
    rows = np.array([_row(shape) for shape, _ in shapes])
    measured = np.array([measured_ms for _, measured_ms in shapes])
    keep = np.ones(len(measured), dtype=bool)
    for _ in range(3):
        scaled = rows[keep] / measured[keep, None]
        solution = solve_nonnegative(scaled.T @ scaled, scaled.sum(axis=0))
        errors = np.log(measured / np.maximum(rows @ solution, 1e-6))
        # Iterations that something else on the machine held up are none of the engine's.
        keep = np.abs(errors) < 3 * np.median(np.abs(errors))
    cost = dict(zip((*FEATURES, "large_tokens"), solution.tolist(), strict=True))
    return EngineCosts(
        iteration_ms=cost["iteration"],
        token_ms=cost["prefill_tokens"],
        attention_ms=cost["prefill_attention"],
        prompt_ms=cost["prefill_sequences"],
        decode_ms=cost["decode_sequences"],
        context_ms=cost["decode_context"],
        large_token_ms=cost["large_tokens"],
        kv_blocks=1,
        block_size=128,
        block_bytes=int(128 * KV_BYTES_PER_TOKEN),
        layers=LAYERS,
        copy_bytes_per_s=COPY_BYTES_PER_S,
        stop_ms=STOP_MS,
        stop_lag_layers=0,
        front_ms=FRONT_MS,
        noise=float(1.4826 * np.median(np.abs(errors - np.median(errors)))),
    )


def _row(shape: IterationShape) -> tuple[float, ...]:
    return (
        1.0,
        shape.prefill_tokens,
        shape.prefill_attention,
        shape.prefill_sequences,
        shape.decode_sequences,
        shape.decode_context,
        max(0, shape.prefill_tokens - LARGE_TOKENS),
    )


def choose_policy(recording: Recording) -> SimPolicy:
    """How the engine of a recording schedules."""
    policy = POLICIES[_POLICY_OF.get(recording.run, "conserve")]
    ttft_slo_ms = recording.ttft_slo_ms or math.inf
    tbt_slo_ms = recording.tbt_slo_ms or math.inf
    mechanisms = policy.mechanisms.without(recording.off)
    mechanisms = replace(mechanisms, offline_pass_tokens=recording.offline_pass_tokens)
    return replace(policy, mechanisms=mechanisms).with_objectives(ttft_slo_ms, tbt_slo_ms)


def replay(recording: Recording, costs: EngineCosts, seeds: Sequence[int] = (1, 2, 3)) -> dict[str, float]:
    """The figures of a recording as the simulator has them; of several seeds, which differ in noise, the means."""
    found = [_replay(recording, costs, seed) for seed in seeds]
    return {name: float(np.mean([figures[name] for figures in found])) for name in found[0]}


def _replay(recording: Recording, costs: EngineCosts, seed: int) -> dict[str, float]:
    costs = costs.model_copy(
        update={
            "kv_blocks": recording.kv_blocks,
            "block_size": recording.block_size,
            "host_kv_gib": recording.host_blocks * costs.block_bytes / 2**30,
        }
    )
    limits = EngineLimits(
        recording.max_num_seqs, recording.max_num_batched_tokens, recording.long_prefill_token_threshold
    )
    start_s, end_s = recording.window_s
    metrics = Metrics(start_s, end_s)
    supply = None
    if recording.offline:
        requests = itertools.cycle((prompt, output, 0, 0) for prompt, output in recording.offline)
        supply = EndlessSupply(requests, recording.in_flight)
    cluster = Cluster(costs, limits, choose_policy(recording), 1, metrics, seed, supply)
    cluster.run((Arrival(*each) for each in recording.online), end_s + 10.0)
    figures = {
        "offline_tokens_per_s": metrics.offline_tokens_per_s,
        "offline_output_tokens_per_s": metrics.offline_output_tokens / metrics.window_s,
        "online_requests": float(metrics.online_requests),
        "stops": float(metrics.stops),
        "preemptions": float(metrics.offline_preemptions),
    }
    for name, histogram in (("ttft", metrics.ttft), ("tbt", metrics.tbt)):
        for quantile in (50, 90, 99):
            figures[f"{name}_p{quantile}_ms"] = histogram.percentile(quantile / 100)
    return figures
