"""How right a latency model's recent predictions were."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from statistics import median

import numpy as np

MAX_SAFETY_FACTOR = 1.5
_SCORES = 256
_SAFETY_PERCENTILE = 99
_SAFETY_SCORES = 128
"""Fewer than for the error: what was wrong half a minute ago must not shorten iterations now."""
_LEAST_SCORES = 32

_SCATTER_WINDOW = 64
_LEAST_SCATTER, _MOST_SCATTER = 0.05, 0.5
_MAD_TO_DEVIATION = 1.4826
_USUAL = 2.0
"""A prediction that is off by no more than so many scatters is as usual."""

_SHIFT_WINDOW = 8
_SHIFT_OUTVOTED = 2
_LEAST_SHIFT = 0.1
"""The machine's speed has changed when all but two of the latest iterations are off to one side by more than this (a
logarithm) and by more than the scatter explains."""


@dataclass(frozen=True)
class LatencyError:
    """Relative error |predicted - measured| / measured of predictions made before the iteration was learnt from."""

    median: float = 0.0
    p95: float = 0.0
    samples: int = 0


class LatencyScores:
    """The logarithms of measured over predicted times, of the last 256 iterations.

    Args:
        safety_factor: What it is until there are enough scores.
    """

    def __init__(self, safety_factor: float = MAX_SAFETY_FACTOR) -> None:
        self.safety_factor = safety_factor
        self._scatter = _MOST_SCATTER
        self._log_ratios: deque[float] = deque(maxlen=_SCORES)
        self._since_shift: deque[float] = deque(maxlen=_SCATTER_WINDOW)

    def add(self, log_ratio: float) -> None:
        """Notes one prediction."""
        self._log_ratios.append(log_ratio)
        self._since_shift.append(log_ratio)

    def trust(self, log_ratio: float) -> float:
        """How much an iteration should count that is off by this: 1 as a rule, less for outliers (Huber's weight)."""
        return min(1.0, _USUAL * self._scatter / max(abs(log_ratio), _LEAST_SCATTER))

    def take_shift(self) -> float | None:
        """The change of the machine's speed, as a logarithm (positive: slower), when there is one; told once."""
        if len(self._since_shift) < _SHIFT_WINDOW:
            return None
        latest = sorted(islice(reversed(self._since_shift), _SHIFT_WINDOW))
        least = max(_LEAST_SHIFT, _USUAL * self._scatter)
        if not (latest[_SHIFT_OUTVOTED] > least or latest[-1 - _SHIFT_OUTVOTED] < -least):
            return None
        self._since_shift.clear()
        return median(latest)

    def summarise(self) -> None:
        """Brings scatter and safety factor up to date; takes some tens of microseconds."""
        if len(self._since_shift) >= _SHIFT_WINDOW:
            # Around their own median: were it around 0, a change of speed would pass for scatter.
            middle = median(self._since_shift)
            off = median(abs(log_ratio - middle) for log_ratio in self._since_shift)
            self._scatter = min(max(_MAD_TO_DEVIATION * off, _LEAST_SCATTER), _MOST_SCATTER)
        if len(self._log_ratios) >= _LEAST_SCORES:
            latest = list(islice(reversed(self._log_ratios), _SAFETY_SCORES))
            high = float(np.exp(np.percentile(latest, _SAFETY_PERCENTILE)))
            self.safety_factor = min(max(high, 1.0), MAX_SAFETY_FACTOR)

    def error(self) -> LatencyError:
        """The relative error."""
        if not self._log_ratios:
            return LatencyError()
        errors = np.abs(np.expm1(-np.array(self._log_ratios)))
        middle, high = np.percentile(errors, [50, 95])
        return LatencyError(float(middle), float(high), len(self._log_ratios))
