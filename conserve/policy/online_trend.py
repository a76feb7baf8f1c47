"""How many online requests come to a replica, and how many are to be expected in the next seconds."""

from __future__ import annotations

import math
from typing import Final

FAST_S: Final = 5.0
SLOW_S: Final = 30.0
"""Memories of two means: what lies between them is which way the rate goes."""
AHEAD_S: Final = 5.0
"""So far ahead lies what is to be expected: an allotment is as old as that when it expires."""
MOST_RISE: Final = 2.0
"""No more than so many times what is now is expected."""


class OnlineTrend:
    """Takes note of a replica's online requests, some times a second."""

    def __init__(self) -> None:
        self._at_s: float | None = None
        self._requests = 0
        self._fast_per_s = 0.0
        self._slow_per_s = 0.0
        self._running = 0.0

    def observe(self, now_s: float, requests: int, running: int) -> None:
        """So it is now.

        Args:
            now_s: Now, by any clock.
            requests: Online requests that have come so far.
            running: Those that have got their first token, and decode.
        """
        if self._at_s is not None and now_s > self._at_s:
            passed_s = now_s - self._at_s
            rate = max(0, requests - self._requests) / passed_s
            fast, slow = (1.0 - math.exp(-passed_s / memory_s) for memory_s in (FAST_S, SLOW_S))
            self._fast_per_s += fast * (rate - self._fast_per_s)
            self._slow_per_s += slow * (rate - self._slow_per_s)
            self._running += fast * (running - self._running)
        self._at_s, self._requests = now_s, requests

    @property
    def rate_per_s(self) -> float:
        """Requests that came in a second, in the latest seconds."""
        return self._fast_per_s

    @property
    def forecast_per_s(self) -> float:
        """Requests that are to be expected in a second, in the next seconds: the rate goes on as it went."""
        # A mean is as old as its memory: the slope is that from the one to the other.
        slope = (self._fast_per_s - self._slow_per_s) / (SLOW_S - FAST_S)
        expected = self._fast_per_s + slope * (FAST_S + AHEAD_S)
        return min(max(0.0, expected), MOST_RISE * self._fast_per_s)

    @property
    def expected_running(self) -> float:
        """Requests that are to be expected to decode at the same time in the next seconds."""
        if self._fast_per_s <= 0:
            return self._running
        return self._running * self.forecast_per_s / self._fast_per_s
