"""How much batch work can be promised: what the same hours of earlier days had, less what such forecasts were wrong by.

Online load follows the day, so what it leaves over does, too. HyGen and Tidal promise from a rate; a rate that was seen
at night does not hold at noon. How wrong the mean of earlier days may be needs no model of the load: the same forecast
is made for each moment of those days, from the other days only, and compared with what came (as in split conformal
prediction: Vovk et al. 2005, Lei et al. 2018). What today is short of, or has more than, other days is taken to fade
away in about an hour, in those forecasts as in this one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conserve.policy.capacity import INTERVAL_S, INTERVALS_PER_DAY, LEAST_HISTORY_S, CapacityHistory

LEAST_DAYS: Final = 2
"""With less than so many whole days, the worst times that were seen may come at any hour."""
PROMISED_SHARE: Final = 0.85
"""Of what a forecast says: a week has seen few days, and the next one may be worse than all of them."""
_FADE_S: Final = 3_600.0
_PRESENT: Final = 3
"""Intervals that say how today differs."""
_HORIZONS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 36, 48, 72, 96, 144, 192, 240, INTERVALS_PER_DAY)
"""For so many intervals earlier forecasts are compared with what came; in between is interpolated."""

_Array = NDArray[np.float64]


class PromisedCapacity:
    """Tokens that can be promised until a time.

    Args:
        history: What was seen.
        now_s: Now, in seconds since the epoch.
        horizon_s: No promise goes further.
        quantile: Share of earlier forecasts like this one that would have been too high; 0.5 is what is to be expected.
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
        self._left_s = (int(now_s // INTERVAL_S) + 1) * INTERVAL_S - now_s
        count = math.ceil(horizon_s / INTERVAL_S) + 1
        first = int(now_s // INTERVAL_S)
        days = history.count_days(first)
        rates = history.list_rates()
        if days < LEAST_DAYS:
            tokens = self._take_worst(rates, count, quantile)
        else:
            past = _Past.of(history.list_days(first, days), float(np.quantile(rates, quantile)))
            tokens = self._forecast(past, count, quantile)
        # Capacity does not go backwards: what can be promised by a time can be promised by later ones.
        kept = np.maximum.accumulate(np.maximum(0.0, margin * tokens))
        self._promised: list[float] = [0.0, *kept.tolist()]

    def _take_worst(self, rates: _Array, count: int, quantile: float) -> _Array:
        """For each horizon the worst time of that length, or of half of what was seen if that is shorter."""
        added = np.concatenate(([0.0], np.cumsum(rates)))
        worst = []
        for horizon in _HORIZONS:
            length = min(horizon, max(1, len(rates) // 2))
            worst.append(horizon * float(np.quantile((added[length:] - added[:-length]) / length, quantile)))
        places = np.arange(1, count + 1) - 1.0 + self._left_s / INTERVAL_S
        days = np.maximum(1.0, places / INTERVALS_PER_DAY)
        tokens: _Array = np.interp(places, (0.0, *_HORIZONS), (0.0, *worst)) * days * INTERVAL_S
        return tokens

    def _forecast(self, past: _Past, count: int, quantile: float) -> _Array:
        places = np.arange(1, count + 1, dtype=np.float64)
        fading = np.exp(-places * (INTERVAL_S / _FADE_S))
        rates = np.maximum(0.0, past.profile[np.arange(count) % INTERVALS_PER_DAY] + past.present * fading)
        expected = self._add_up(rates)
        short, share = past.compare(quantile)
        horizons = np.array(_HORIZONS, dtype=np.float64)
        # Beyond a day each day may be as bad as the worst.
        days = np.maximum(1.0, places / INTERVALS_PER_DAY)
        short_by = np.interp(places, horizons, short) * days * INTERVAL_S
        # The first for noise that is as large at night as at noon, the second where all that is left is noise.
        bounds: _Array = np.maximum(expected - short_by, expected * np.interp(places, horizons, share))
        return bounds

    def _add_up(self, rates: _Array) -> _Array:
        seconds = np.full(len(rates), INTERVAL_S)
        seconds[0] = self._left_s
        added: _Array = np.cumsum(rates * seconds)
        return added

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
        passed_s = at_s - self._now_s
        if passed_s <= 0:
            return 0.0
        return passed_s / self._left_s if passed_s <= self._left_s else 1.0 + (passed_s - self._left_s) / INTERVAL_S

    def _find_time(self, place: float) -> float:
        return self._now_s + (place * self._left_s if place <= 1.0 else self._left_s + (place - 1.0) * INTERVAL_S)


class _Past(NamedTuple):
    """Earlier days, one interval after the other, and what the others of them would have said of each.

    Attributes:
        profile: Mean rate of each interval of the day, the one that is now coming first.
        seen: Rate of each interval of the past.
        foretold: Mean of the same interval of the other days.
        present: By how much the latest intervals had more than foretold.
    """

    profile: _Array
    seen: _Array
    foretold: _Array
    present: float

    @classmethod
    def of(cls, days: _Array, low_rate: float) -> _Past:
        """From the rates of whole days; `low_rate` stands where none of them knows anything."""
        known = ~np.isnan(days)
        counts = known.sum(axis=0)
        sums = np.where(known, days, 0.0).sum(axis=0)
        profile = np.where(counts > 0, sums / np.maximum(counts, 1), low_rate)
        others = counts - known
        foretold = np.where(others > 0, (sums - np.where(known, days, 0.0)) / np.maximum(others, 1), profile)
        # Of what was not seen, or on one day only, it is not known how wrong a forecast was.
        is_comparable = known & (others > 0)
        seen = np.where(is_comparable, days, foretold)
        errors = (seen - foretold).ravel()
        return cls(profile, seen.ravel(), foretold.ravel(), float(errors[-_PRESENT:].mean()))

    def compare(self, quantile: float) -> tuple[_Array, _Array]:
        """How far earlier forecasts were above what came.

        Returns:
            For each of `_HORIZONS`, what all but this share of them were not exceeded by: in tokens a second times
            intervals, and as the share of the forecast that came.
        """
        errors = self.seen - self.foretold
        above = np.concatenate(([0.0], np.cumsum(errors)))
        came = np.concatenate(([0.0], np.cumsum(self.seen)))
        said = np.concatenate(([0.0], np.cumsum(self.foretold)))
        total = len(errors)
        starts = np.arange(_PRESENT, total)
        presents = (above[starts] - above[starts - _PRESENT]) / _PRESENT
        short: list[float] = []
        share: list[float] = []
        for horizon in _HORIZONS:
            begin = starts[: total - horizon + 1 - _PRESENT]
            fading = float(np.exp(-np.arange(1, horizon + 1) * (INTERVAL_S / _FADE_S)).sum())
            forecast = said[begin + horizon] - said[begin] + presents[: len(begin)] * fading
            actual = came[begin + horizon] - came[begin]
            short.append(float(np.quantile(forecast - actual, 1.0 - quantile)))
            ratios = np.divide(actual, forecast, out=np.ones_like(actual), where=forecast > 0.0)
            share.append(float(np.quantile(ratios, quantile)))
        return np.array(short), np.array(share)
