"""How much batch work can be promised: what could be harvested at the same times of earlier days.

Online load follows the day, so what is left over does, too. HyGen and Tidal promise from a rate; a rate that was seen
at night does not hold at noon.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import Final

INTERVAL_S: Final = 300.0
DAY_S: Final = 86_400.0
HISTORY_DAYS: Final = 7
LEAST_HISTORY_S: Final = 1_800.0
"""With less that was seen there is no forecast."""
_PER_DAY: Final = round(DAY_S / INTERVAL_S)


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

    def observe(self, at_s: float, tokens: float, seconds: float) -> None:
        """So many tokens could have been harvested in so much time, which has just ended.

        Args:
            at_s: Now, in seconds since the epoch.
            tokens: What was harvested, or would have been if there had been enough work.
            seconds: No longer than an interval.
        """
        if seconds <= 0:
            return
        number = int(at_s // INTERVAL_S)
        before_tokens, before_s = self._intervals.get(number, (0.0, 0.0))
        self._intervals[number] = (before_tokens + tokens, before_s + seconds)
        oldest = number - (HISTORY_DAYS + 1) * _PER_DAY
        for old in [each for each in self._intervals if each < oldest]:
            del self._intervals[old]

    def rate(self, number: int) -> float | None:
        """Tokens a second in an interval; None if nothing is known of it."""
        seen = self._intervals.get(number)
        return seen[0] / seen[1] if seen is not None else None


class PromisedCapacity:
    """Tokens that can be promised until a time.

    Each earlier day is one way in which the coming days may go, beginning with that day and going on with those after.
    What can be promised until a time is a low quantile of what they had left over until then, less a margin.

    Args:
        history: What was seen.
        now_s: Now, in seconds since the epoch.
        horizon_s: No promise goes further.
        quantile: Share of the earlier days that had less; 0.5 is what is to be expected.
        margin: Part of it that is promised.

    Raises:
        ValueError: less is known than `LEAST_HISTORY_S`.
    """

    def __init__(
        self, history: CapacityHistory, now_s: float, horizon_s: float, quantile: float, margin: float = 1.0
    ) -> None:
        if history.seen_s < LEAST_HISTORY_S:
            raise ValueError(
                f"{history.seen_s:.0f} s are known of what can be harvested, {LEAST_HISTORY_S:.0f} are needed"
            )
        self._now_s = now_s
        first = int(now_s // INTERVAL_S)
        count = math.ceil(horizon_s / INTERVAL_S) + 1
        lowest = self._find_lowest(history, quantile)
        days = max(1, min(HISTORY_DAYS, (first - min(history.intervals)) // _PER_DAY))
        ways = [
            list(accumulate(self._list_tokens(history, first, count, way, days, lowest), initial=0.0))
            for way in range(days)
        ]
        rank = int(quantile * (days - 1))
        self._promised = [margin * sorted(tokens)[rank] for tokens in zip(*ways, strict=True)]

    @staticmethod
    def _find_lowest(history: CapacityHistory, quantile: float) -> float:
        rates = sorted(rate for number in history.intervals if (rate := history.rate(number)) is not None)
        return rates[int(quantile * (len(rates) - 1))]

    def _list_tokens(
        self, history: CapacityHistory, first: int, count: int, way: int, days: int, lowest: float
    ) -> list[float]:
        tokens = []
        for offset in range(count):
            days_later, in_day = divmod(offset, _PER_DAY)
            days_ago = days - (way + days_later) % days
            rate = history.rate(first + in_day - days_ago * _PER_DAY)
            seconds = INTERVAL_S - (self._now_s - first * INTERVAL_S) if offset == 0 else INTERVAL_S
            tokens.append((rate if rate is not None else lowest) * seconds)
        return tokens

    def until(self, at_s: float) -> float:
        """Tokens that can be promised until a time; beyond the horizon no more than until then."""
        place = self._find_place(at_s)
        index = min(int(place), len(self._promised) - 1)
        if index + 1 >= len(self._promised):
            return self._promised[-1]
        return self._promised[index] + (place - index) * (self._promised[index + 1] - self._promised[index])

    def when(self, tokens: float) -> float | None:
        """The earliest time until which so many can be promised; None if it is beyond the horizon."""
        if tokens <= 0:
            return self._now_s
        index = bisect_left(self._promised, tokens)
        if index >= len(self._promised):
            return None
        before, after = self._promised[index - 1], self._promised[index]
        return self._find_time(index - 1 + (tokens - before) / (after - before))

    def _find_place(self, at_s: float) -> float:
        """Number of intervals from now; the first one is what is left of the current one."""
        first = int(self._now_s // INTERVAL_S)
        if at_s <= self._now_s:
            return 0.0
        left_s = (first + 1) * INTERVAL_S - self._now_s
        passed_s = at_s - self._now_s
        return passed_s / left_s if passed_s <= left_s else 1.0 + (passed_s - left_s) / INTERVAL_S

    def _find_time(self, place: float) -> float:
        left_s = (int(self._now_s // INTERVAL_S) + 1) * INTERVAL_S - self._now_s
        return self._now_s + (place * left_s if place <= 1.0 else left_s + (place - 1.0) * INTERVAL_S)
