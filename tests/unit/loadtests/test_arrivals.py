from __future__ import annotations

import itertools

import numpy as np
import pytest

from loadtests.arrivals import gamma, poisson, until


def draw_gaps(cv: float, count: int = 20_000) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    times = np.array([0.0, *itertools.islice(gamma(2.0, cv, seed=3), count)])
    return np.diff(times)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_rate_and_variation_are_as_asked(cv: float) -> None:
    gaps = draw_gaps(cv)
    assert np.mean(gaps) == pytest.approx(0.5, rel=0.08)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(cv, rel=0.08)
    assert np.min(gaps) >= 0


def test_poisson_counts_have_their_mean_as_variance() -> None:
    times = list(until(10_000, poisson(0.7, seed=1)))
    counts = np.histogram(times, bins=1_000, range=(0, 10_000))[0]
    assert np.mean(counts) == pytest.approx(7, rel=0.05)
    assert np.var(counts) == pytest.approx(7, rel=0.15)


def test_a_seed_gives_the_same_arrivals() -> None:
    first, second, other = (list(until(50, poisson(1.0, seed))) for seed in (1, 1, 2))
    assert first == second != other
    assert first == sorted(first)
    assert first[0] > 0
    assert first[-1] < 50


@pytest.mark.parametrize(("rate", "cv"), [(0, 1), (-1, 1), (1, 0), (float("nan"), 1)])
def test_impossible_arrivals_are_refused(rate: float, cv: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        gamma(rate, cv, seed=1)
