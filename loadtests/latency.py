"""Percentiles of pooled latencies, and how sure a ratio of two of them is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from loadtests.chat_record import ChatRecord
from loadtests.report import Percentiles, Ratio

CONFIDENCE = 0.95


def percentiles(samples: Sequence[float]) -> Percentiles | None:
    """p50, p90 and p99 (linear interpolation); None of no samples."""
    if not len(samples):
        return None
    p50, p90, p99 = np.percentile(np.asarray(samples, dtype=float), [50, 90, 99])
    return Percentiles(p50=float(p50), p90=float(p90), p99=float(p99))


def ttft_groups(records: Iterable[ChatRecord]) -> list[list[float]]:
    """TTFT in ms of each request that has one, failed ones left out (they are counted as errors)."""
    return [[record.ttft_ms] for record in records if record.error is None and record.ttft_ms is not None]


def tbt_groups(records: Iterable[ChatRecord]) -> list[list[float]]:
    """TBT in ms, one list a request, failed ones left out."""
    return [list(record.tbt_ms) for record in records if record.error is None and record.tbt_ms]


def pool(groups: Iterable[Sequence[float]]) -> list[float]:
    """The samples of all groups in one list."""
    return [sample for group in groups for sample in group]


def percentile_ratio(
    numerator: Sequence[Sequence[float]],
    denominator: Sequence[Sequence[float]],
    percentile: float,
    *,
    resamples: int = 1_000,
    seed: int = 0,
) -> Ratio | None:
    """The ratio of a percentile of two pooled samples with its bootstrap interval; None if one has no samples.

    Args:
        numerator: Samples in groups. A group is resampled as a whole because what is in it hangs together, such as the
            gaps of one answer. Independent samples are groups of one.
        denominator: Likewise.
        percentile: 0 to 100.
        resamples: Bootstrap resamples.
        seed: The same seed gives the same interval.

    Returns:
        `median` is the ratio of the pooled values, `min` and `max` the 95 % percentile interval (Efron).
    """
    above, below = _as_arrays(numerator), _as_arrays(denominator)
    if not above or not below:
        return None
    base = float(np.percentile(np.concatenate(below), percentile))
    if base <= 0:
        raise ValueError(f"denominator: percentile {percentile:g} must be above 0 (it is {base})")
    generator = np.random.default_rng(seed)
    ratios = np.array(
        [
            _resample(above, percentile, generator) / max(_resample(below, percentile, generator), np.finfo(float).tiny)
            for _ in range(resamples)
        ]
    )
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    value = float(np.percentile(np.concatenate(above), percentile)) / base
    return Ratio(median=value, min=float(low), max=float(high))


def percentile_interval(
    groups: Sequence[Sequence[float]], percentile: float, *, resamples: int = 1_000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % bootstrap interval of a percentile of a pooled sample; groups as of `percentile_ratio`, at least one."""
    arrays = _as_arrays(groups)
    generator = np.random.default_rng(seed)
    found = [_resample(arrays, percentile, generator) for _ in range(resamples)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)


def _as_arrays(groups: Sequence[Sequence[float]]) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return [np.asarray(group, dtype=np.float64) for group in groups if len(group)]


def _resample(
    groups: list[np.ndarray[tuple[int], np.dtype[np.float64]]], percentile: float, generator: np.random.Generator
) -> float:
    chosen = generator.integers(0, len(groups), len(groups))
    return float(np.percentile(np.concatenate([groups[index] for index in chosen]), percentile))
