"""What is found out before the runs: the online capacity, the best sizes of the stock engine, the best of the ceiling.

All of it uses seeds that no run uses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from conserve.config import EngineSettings
from conserve.engine.page import Knobs
from loadtests.coserving.results import CalibrationPoint, RunResult, pool_rates
from loadtests.latency import percentiles, pool

BATCHED_TOKENS: Final = (128, 256, 512, 2_048)
PREFILL_THRESHOLDS: Final = (0, 64, 256)
NEAR_BEST_OFFLINE_SHARE: Final = 0.9
"""The stock engine is tuned for latency among the settings with this share of the best offline rate of all."""
FIRST_ROUND_OFFLINE_SHARE: Final = 0.7
"""The same for who gets into the second round: short runs measure an offline rate less exactly."""
FINALISTS: Final = 4

Measure = Callable[[Knobs, float], Awaitable[RunResult]]
"""Makes a short co-serving run with these knobs and a window of so many seconds."""


@dataclass(frozen=True)
class TuningTimes:
    """Seconds measured of each setting in the first round, and of each finalist in the second."""

    first_s: float
    second_s: float

    @classmethod
    def for_rate(cls, online_rate_per_s: float) -> TuningTimes:
        """Some seven online requests in the first round, within bounds, and three times as many in the second."""
        first_s = min(16.0, max(6.0, 7.0 / online_rate_per_s))
        return cls(first_s, 3 * first_s)


def list_stock_sizes(engine: EngineSettings) -> list[Knobs]:
    """The fixed grid of sizes of the stock engine, each size no larger than what it was started with, none twice.

    A threshold not below the batch size changes nothing, so it counts as none.
    """
    grid = itertools.product(
        list_batch_sizes(engine), PREFILL_THRESHOLDS, (engine.max_num_seqs, max(1, engine.max_num_seqs // 2))
    )
    return list(
        dict.fromkeys(
            Knobs(
                max_num_batched_tokens=tokens,
                long_prefill_token_threshold=threshold if threshold < tokens else 0,
                max_num_seqs=sequences,
            )
            for tokens, threshold, sequences in grid
        )
    )


def list_batch_sizes(engine: EngineSettings) -> list[int]:
    """Batch sizes of the grid, none above the engine's own."""
    return sorted({min(tokens, engine.max_num_batched_tokens) for tokens in BATCHED_TOKENS})


async def tune_stock(settings: Sequence[Knobs], measure: Measure, times: TuningTimes) -> list[CalibrationPoint]:
    """Finds the setting with the lowest P99 TTFT among those with at least 90 % of the best offline rate.

    Two rounds: a short run of each setting; then a longer one of the four best, the one with the best offline rate
    always among them. What was measured in both rounds is judged together.

    Returns:
        All settings; exactly one is chosen.
    """
    first = [(knobs, await measure(knobs, times.first_s)) for knobs in settings]
    points = [summarize("stock", knobs, [result]) for knobs, result in first]
    finalists = _pick_finalists(points)
    for index in finalists:
        knobs, result = first[index]
        points[index] = summarize("stock", knobs, [result, await measure(knobs, times.second_s)])
    chosen = _pick_best([points[index] for index in finalists])
    return [replace(point, chosen=point is chosen) for point in points]


async def find_ceiling_size(sizes: Sequence[int], measure: Measure, window_s: float) -> list[CalibrationPoint]:
    """Finds the batch size with the best offline rate without objectives.

    Returns:
        All sizes; exactly one is chosen.
    """
    points = []
    for size in sizes:
        knobs = make_ceiling_knobs(size)
        points.append(summarize("conserve", knobs, [await measure(knobs, window_s)]))
    best = max(points, key=lambda point: point.offline.total_per_s)
    return [replace(point, chosen=point is best) for point in points]


def make_ceiling_knobs(batch_tokens: int) -> Knobs:
    """Our engine without objectives, with batches of this size."""
    return Knobs(
        ttft_slo_ms=math.inf,
        tbt_slo_ms=math.inf,
        max_num_batched_tokens=batch_tokens,
        offline_pass_tokens=batch_tokens,
    )


def summarize(mode: str, knobs: Knobs, results: Sequence[RunResult]) -> CalibrationPoint:
    """One point of all runs of a setting."""
    window_s = sum(result.window_s for result in results)
    ttft = percentiles(pool(group for result in results for group in result.ttft_groups))
    tbt = percentiles(pool(group for result in results for group in result.tbt_groups))
    # One that was given up has waited longer than all others.
    is_complete = all(record.error is None for result in results for record in result.measured_online)
    return CalibrationPoint(
        mode=mode,
        knobs={name: value for name, value in asdict(knobs).items() if value and math.isfinite(value)},
        window_s=window_s,
        online_requests=sum(len(result.measured_online) for result in results),
        ttft_p50_ms=ttft.p50 if ttft else None,
        ttft_p99_ms=ttft.p99 if ttft and is_complete else None,
        tbt_p99_ms=tbt.p99 if tbt else None,
        offline=pool_rates(results, lambda result: result.offline_rates),
    )


def find_chosen(points: Sequence[CalibrationPoint]) -> CalibrationPoint:
    """The chosen one of the points."""
    return next(point for point in points if point.chosen)


def _pick_finalists(points: Sequence[CalibrationPoint]) -> list[int]:
    """Indices of the settings of the second round."""
    most = max(range(len(points)), key=lambda index: points[index].offline.total_per_s)
    others = [index for index in _list_fast(points, FIRST_ROUND_OFFLINE_SHARE) if index != most]
    return [most, *others[: FINALISTS - 1]]


def _pick_best(points: Sequence[CalibrationPoint]) -> CalibrationPoint:
    return points[_list_fast(points, NEAR_BEST_OFFLINE_SHARE)[0]]


def _list_fast(points: Sequence[CalibrationPoint], offline_share: float) -> list[int]:
    """Indices of the settings with this share of the best offline rate, by P99 TTFT."""
    enough = offline_share * max(point.offline.total_per_s for point in points)
    return sorted(
        (index for index, point in enumerate(points) if point.offline.total_per_s >= enough),
        key=lambda index: math.inf if points[index].ttft_p99_ms is None else points[index].ttft_p99_ms or 0.0,
    )
