"""How much batch work could be done lately: tokens a second by interval of the clock, over the latest days."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

INTERVAL_S: Final = 300.0
DAY_S: Final = 86_400.0
HISTORY_DAYS: Final = 7
"""Forecasts look back so far; one day more is kept."""
LEAST_HISTORY_S: Final = 1_800.0
"""With less that was seen there is no forecast."""
INTERVALS_PER_DAY: Final = round(DAY_S / INTERVAL_S)


class CapacityHistory:
    """Tokens a second that could be harvested, by interval of the clock, of the latest days.

    Args:
        intervals: What was seen before: tokens and seconds, by number of the interval since the epoch.
    """

    def __init__(self, intervals: Mapping[int, tuple[float, float]] | None = None) -> None:
        self._intervals = dict(intervals or {})

    @property
    def intervals(self) -> Mapping[int, tuple[float, float]]:
        """Tokens and seconds, by number of the interval since the epoch."""
        return self._intervals

    @property
    def seen_s(self) -> float:
        """Of how much time something is known."""
        return sum(seconds for _, seconds in self._intervals.values())

    def observe(self, at_s: float, tokens: float, seconds: float) -> list[int]:
        """So many tokens could have been harvested in so much time, which has just ended.

        Args:
            at_s: Now, in seconds since the epoch.
            tokens: What was harvested, or would have been if there had been enough work.
            seconds: No longer than an interval.

        Returns:
            Intervals that are forgotten now, for being too old.
        """
        if seconds <= 0:
            return []
        number = int(at_s // INTERVAL_S)
        is_new = number not in self._intervals
        before_tokens, before_s = self._intervals.get(number, (0.0, 0.0))
        self._intervals[number] = (before_tokens + tokens, before_s + seconds)
        if not is_new:
            return []
        oldest = number - (HISTORY_DAYS + 1) * INTERVALS_PER_DAY
        old = [each for each in self._intervals if each < oldest]
        for each in old:
            del self._intervals[each]
        return old

    def rate(self, number: int) -> float | None:
        """Tokens a second in an interval; None if nothing is known of it."""
        seen = self._intervals.get(number)
        return seen[0] / seen[1] if seen is not None and seen[1] > 0 else None

    def count_days(self, first: int) -> int:
        """Whole days before an interval of which something is known, `HISTORY_DAYS` at most."""
        if not self._intervals:
            return 0
        return max(0, min(HISTORY_DAYS, (first - min(self._intervals)) // INTERVALS_PER_DAY))

    def list_days(self, first: int, days: int) -> NDArray[np.float64]:
        """Tokens a second of the days before an interval.

        Args:
            first: The interval that comes after the last one of them.
            days: How many.

        Returns:
            A row for each day, the oldest one first, a column for each interval; NaN where nothing is known.
        """
        start = first - days * INTERVALS_PER_DAY
        rates = [self.rate(number) for number in range(start, first)]
        return np.array([np.nan if rate is None else rate for rate in rates]).reshape(days, INTERVALS_PER_DAY)

    def list_rates(self) -> NDArray[np.float64]:
        """Tokens a second of all intervals of which something is known, the oldest one first."""
        known = [self.rate(number) for number in sorted(self._intervals)]
        return np.array([rate for rate in known if rate is not None])


class SteadyCapacity:
    """The same rate for ever: what is to be expected where little is known.

    Args:
        rate: Tokens a second, more than 0.
        now_s: Now, in seconds since the epoch.
    """

    def __init__(self, rate: float, now_s: float) -> None:
        self._rate = rate
        self._now_s = now_s

    def until(self, at_s: float) -> float:
        """Tokens until a time."""
        return self._rate * max(0.0, at_s - self._now_s)

    def when(self, tokens: float) -> float | None:
        """The earliest time until which there are so many."""
        return self._now_s + max(0.0, tokens) / self._rate
