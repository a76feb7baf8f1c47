"""A recording in the simulator: the same requests, the same engine, and costs that were measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from conserve.policy.latency import FEATURES, IterationShape
from conserve.policy.least_squares import solve_nonnegative
from conserve.simulator.cluster import Cluster
from conserve.simulator.engine_costs import LARGE_TOKENS, EngineCosts
from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.metrics import LatencyHistogram, Metrics
from conserve.simulator.policies import POLICIES, SimPolicy
from conserve.simulator.supply import EndlessSupply
from conserve.simulator.workload import Arrival
from loadtests.latency import percentile_interval
from loadtests.validation.recording import KV_BYTES_PER_TOKEN, LAYERS, Recording

FRONT_MS: Final = 6.0
"""From when a request is due to the scheduler and from the end of an iteration to the client, measured without load."""
COPY_BYTES_PER_S: Final = 4e9
DRAIN_S: Final = 10.0
_POLICY_OF: Final = {
    "online-only": "online-only",
    "offline-only": "offline-only",
    "stock-coserve": "stock-priority",
    "stock-tuned": "stock-priority",
    "ceiling": "ceiling",
}


def fit_costs(recordings: Sequence[Recording]) -> EngineCosts:
    """The costs of iterations, by relative least squares, from all whole iterations of the recordings."""
    shapes = [pair for recording in recordings for pair in recording.list_shapes()]
    rows = np.array([_row(shape) for shape, _ in shapes])
    measured = np.array([measured_ms for _, measured_ms in shapes])
    keep = np.ones(len(measured), dtype=bool)
    for _ in range(3):
        scaled = rows[keep] / measured[keep, None]
        solution = solve_nonnegative(scaled.T @ scaled, scaled.sum(axis=0))
        errors = np.log(measured / np.maximum(rows @ solution, 1e-6))
        # Iterations that something else on the machine held up say nothing about what decides the others.
        keep = np.abs(errors) < 3 * np.median(np.abs(errors))
    # But their time has passed: all together they take what they have taken.
    solution *= measured.sum() / (rows @ solution).sum()
    noise, memory = _measure_noise(recordings)
    stop_ms, resume_ms = _measure_stops(recordings, solution)
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
        stop_ms=stop_ms,
        resume_ms=resume_ms,
        stop_lag_layers=0,
        front_ms=FRONT_MS,
        noise=noise,
        noise_memory=memory,
    )


def measure_speeds(recordings: Sequence[Recording], costs: EngineCosts) -> list[float]:
    """How long iterations took while each run was made, over what they cost: a shared machine is not always as fast.

    By the run's own log; without one, by those of its repeat, and without those 1.
    """
    own = [_count_time(recording, costs) for recording in recordings]
    repeats: dict[int, tuple[float, float]] = {}
    for recording, (measured, expected) in zip(recordings, own, strict=True):
        before = repeats.get(recording.repeat, (0.0, 0.0))
        repeats[recording.repeat] = (before[0] + measured, before[1] + expected)
    speeds = []
    for recording, times in zip(recordings, own, strict=True):
        measured, expected = times if times[1] else repeats[recording.repeat]
        speeds.append(measured / expected if expected else 1.0)
    return speeds


def _count_time(recording: Recording, costs: EngineCosts) -> tuple[float, float]:
    shapes = recording.list_shapes()
    return sum(took_ms for _, took_ms in shapes), sum(costs.time_ms(shape) for shape, _ in shapes)


def _measure_noise(recordings: Iterable[Recording]) -> tuple[float, float]:
    """`noise` and `noise_memory` of the costs: of what iterations took over what the engine's own model had predicted.

    By the median deviation: the rare ones far off are as often mistakes of the model as of the machine.
    """
    runs = [np.array(recording.list_deviations()) for recording in recordings]
    found = np.concatenate(runs)
    pairs = np.concatenate([np.stack((run[:-1], run[1:])) for run in runs if len(run) > 1], axis=1)
    # One iteration that was held up for long would decide it.
    low, high = np.quantile(pairs, (0.01, 0.99))
    memory = float(np.corrcoef(np.clip(pairs, low, high))[0, 1])
    return float(1.4826 * np.median(np.abs(found - np.median(found)))), max(0.0, memory)


def _measure_stops(recordings: Iterable[Recording], solution: NDArray[np.float64]) -> tuple[float, float]:
    """What a stop and a resumption take besides the layers that they compute, in ms: the medians."""
    stops, resumptions = [0.0], [0.0]
    for recording in recordings:
        for shape, measured_ms, first, last in recording.list_parts():
            rest_ms = measured_ms - float(np.array(_row(shape)) @ solution) * (last - first) / LAYERS
            (stops if last < LAYERS else resumptions).append(rest_ms)
    return max(0.0, float(np.median(stops))), max(0.0, float(np.median(resumptions)))


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
    mechanisms = replace(
        mechanisms, offline_pass_tokens=recording.offline_pass_tokens, full_passes=recording.full_passes
    )
    return replace(policy, mechanisms=mechanisms).with_objectives(ttft_slo_ms, tbt_slo_ms)


Spread = tuple[float, float]


@dataclass
class Figures:
    """Of the runs of one name, pooled: as they were measured, or as they were simulated.

    Attributes:
        spread: By the name of a figure, what it would be if the run was made again: from the least to the most of the
            repeats that were made (rates), the 95 % bootstrap interval of the pooled requests besides (latencies); of
            a simulation from the least to the most of its seeds.
    """

    offline_tokens_per_s: float = 0.0
    ttft_p99_ms: float = 0.0
    tbt_p99_ms: float = 0.0
    stops: float = 0.0
    preemptions: float = 0.0
    spread: dict[str, Spread] = field(default_factory=dict)


def pool_measured(recordings: Sequence[Recording]) -> Figures:
    """What was measured in several repeats of a run."""
    window_s = sum(recording.window_s[1] - recording.window_s[0] for recording in recordings)
    ttft = [value for recording in recordings for value in recording.ttft_ms]
    tbt = [value for recording in recordings for value in recording.tbt_ms]
    return Figures(
        offline_tokens_per_s=sum(recording.offline_tokens for recording in recordings) / window_s,
        ttft_p99_ms=float(np.percentile(ttft, 99)) if ttft else 0.0,
        tbt_p99_ms=float(np.percentile(tbt, 99)) if tbt else 0.0,
        stops=sum(recording.stops for recording in recordings),
        preemptions=sum(recording.preemptions for recording in recordings),
        spread=_find_spread(recordings),
    )


def _find_spread(recordings: Sequence[Recording]) -> dict[str, Spread]:
    rates = [each.offline_tokens / (each.window_s[1] - each.window_s[0]) for each in recordings]
    found = {"offline_tokens_per_s": (min(rates), max(rates))}
    first = [[(value,) for value in recording.ttft_ms] for recording in recordings]
    gaps = [recording.list_answers() for recording in recordings]
    for name, repeats in (("ttft_p99_ms", first), ("tbt_p99_ms", gaps)):
        groups = [group for repeat in repeats for group in repeat]
        if groups:
            own = [float(np.percentile(np.concatenate(repeat), 99)) for repeat in repeats if repeat]
            low, high = percentile_interval(groups, 99)
            found[name] = (min(low, *own), max(high, *own))
    return found


def pool_simulated(
    recordings: Sequence[Recording], costs: Sequence[EngineCosts], seeds: Sequence[int] = (1, 2, 3)
) -> Figures:
    """The same in the simulator, each with its costs; of several seeds, which differ in noise, everything together."""
    pairs = list(zip(recordings, costs, strict=True))
    by_seed = [[replay(recording, own, seed) for recording, own in pairs] for seed in seeds]
    found = _pool([run for runs in by_seed for run in runs], len(seeds))
    each = [_pool(runs, 1) for runs in by_seed]
    for name in ("offline_tokens_per_s", "ttft_p99_ms", "tbt_p99_ms"):
        values = [getattr(figures, name) for figures in each]
        found.spread[name] = (min(values), max(values))
    return found


def _pool(runs: Sequence[Metrics], seeds: int) -> Figures:
    ttft, tbt = LatencyHistogram(), LatencyHistogram()
    for metrics in runs:
        ttft.merge(metrics.ttft)
        tbt.merge(metrics.tbt)
    return Figures(
        offline_tokens_per_s=sum(run.offline_tokens for run in runs) / sum(run.window_s for run in runs),
        ttft_p99_ms=ttft.percentile(0.99),
        tbt_p99_ms=tbt.percentile(0.99),
        stops=sum(run.stops for run in runs) / seeds,
        preemptions=sum(run.offline_preemptions for run in runs) / seeds,
    )


def replay(recording: Recording, costs: EngineCosts, seed: int) -> Metrics:
    """A recording in the simulator."""
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
    cluster.run((Arrival(*each) for each in recording.online), end_s + DRAIN_S)
    return metrics
