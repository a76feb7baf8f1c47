"""Whether a quantity grows: a line through its samples that single outliers do not move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import BaseModel

PERIOD_S: Final = 1_800.0
"""Growth is given for so long: half an hour."""
MOST_SAMPLES: Final = 400
"""Of a fit, which compares each with each; of more every n-th is taken."""


class Growth(BaseModel):
    """How a quantity has developed after the warm-up.

    Attributes:
        name: What it is, and of what.
        unit: Of the values.
        samples: How many there were.
        start, end: Where the fitted line begins and ends.
        growth: What it would grow in half an hour.
        allowed: What it may.
    """

    name: str
    unit: str
    samples: int
    start: float
    end: float
    growth: float
    allowed: float

    @property
    def share(self) -> float:
        """The growth as a share of the start; 0 where that is 0."""
        return self.growth / self.start if self.start else 0.0

    @property
    def is_flat(self) -> bool:
        """Whether it grows no more than it may."""
        return self.growth <= self.allowed


def fit_growth(
    name: str, unit: str, times_s: Sequence[float], values: Sequence[float], share: float, least: float
) -> Growth:
    """Fits by the median of the slopes between all pairs of samples (Theil and Sen).

    Args:
        name: See `Growth`.
        unit: See `Growth`.
        times_s: Of the samples, at least two different ones.
        values: The samples.
        share: It may grow so much of its start in half an hour,
        least: or so much, if that is more: what is small is not stable to a percent.

    Raises:
        ValueError: there are fewer than two samples.
    """
    step = -(-len(times_s) // MOST_SAMPLES) or 1
    times, samples = np.asarray(times_s[::step], float), np.asarray(values[::step], float)
    if len(times) < 2:
        raise ValueError(f"{name}: {len(times)} samples are too few")
    first, second = np.triu_indices(len(times), k=1)
    slope = float(np.median((samples[second] - samples[first]) / (times[second] - times[first])))
    base = float(np.median(samples - slope * times))
    start = base + slope * float(times[0])
    return Growth(
        name=name,
        unit=unit,
        samples=len(samples),
        start=start,
        end=base + slope * float(times[-1]),
        growth=slope * PERIOD_S,
        allowed=max(share * start, least),
    )
