"""Arrival times of an open-loop load: requests come when they come, however slow the answers are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np


def poisson(rate_per_s: float, seed: int) -> Iterator[float]:
    """Endless arrival times, in seconds from the start, with exponential gaps.

    Raises:
        ValueError: `rate_per_s` is not above 0.
    """
    return gamma(rate_per_s, 1.0, seed)


def gamma(rate_per_s: float, cv: float, seed: int) -> Iterator[float]:
    """Endless arrival times, in seconds from the start, with gamma-distributed gaps.

    Args:
        rate_per_s: Mean rate.
        cv: Coefficient of variation of the gaps (standard deviation over mean). 1 is a Poisson process, above 1 comes
            in bursts, below 1 is more even.
        seed: The same seed gives the same arrivals.

    Raises:
        ValueError: `rate_per_s` or `cv` is not above 0.
    """
    if not rate_per_s > 0 or not cv > 0:
        raise ValueError(f"rate_per_s and cv must be above 0 (they are {rate_per_s} and {cv})")
    shape = 1.0 / (cv * cv)
    scale = 1.0 / (rate_per_s * shape)
    generator = np.random.default_rng(seed)
    return itertools.accumulate(float(generator.gamma(shape, scale)) for _ in itertools.count())


def until(end_s: float, arrivals_s: Iterable[float]) -> Iterator[float]:
    """The arrivals before `end_s`."""
    return itertools.takewhile(lambda arrival_s: arrival_s < end_s, arrivals_s)
