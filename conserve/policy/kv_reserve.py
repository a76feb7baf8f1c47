"""How many KV blocks to keep free of offline work, so that a burst of online requests finds room without preemption."""

from __future__ import annotations

import math

INTERVAL_S = 1.0
"""Requests that arrive within this time of the first of them are one burst."""
HALF_LIFE_S = 30.0
"""A burst counts half after this time, so that the reserve follows the traffic down within minutes."""
IDLE_S = 120.0
"""Nothing is kept free after so long without an online request."""
MARGIN = 1.25
"""The next burst may be larger than those seen by this factor."""
MAX_POOL_SHARE = 0.25
"""Of all blocks, kept free at most: a larger burst preempts offline work, which costs less than idle memory."""


class KvReserve:
    """The reserve of one engine: the largest recent burst, fading with its age, and a margin.

    Since all bursts fade at the same rate, the largest one stays the largest until a new one exceeds what is left of
    it; so one number is kept, not a window of them.

    Args:
        pool_blocks: KV blocks of the engine.
    """

    def __init__(self, pool_blocks: int) -> None:
        self._max_blocks = int(pool_blocks * MAX_POOL_SHARE)
        self._burst_blocks = 0
        self._burst_start_s = -math.inf
        self._peak_blocks = 0.0
        self._peak_s = -math.inf  # when the peak was last brought up to date, which every arrival does

    def observe(self, now_s: float, online_blocks_started: int) -> None:
        """Takes note of online requests that have just arrived.

        Args:
            now_s: Time of a clock that does not go back.
            online_blocks_started: KV blocks that they will need; 0 (none has arrived) changes nothing.
        """
        if online_blocks_started <= 0:
            return
        if now_s - self._burst_start_s >= INTERVAL_S:
            self._burst_start_s = now_s
            self._burst_blocks = 0
        self._burst_blocks += online_blocks_started
        self._peak_blocks = max(self._fade_peak(now_s), self._burst_blocks)
        self._peak_s = now_s

    def blocks(self, now_s: float) -> int:
        """KV blocks to keep free now."""
        return min(self._max_blocks, self.predict_burst(now_s))

    def predict_burst(self, now_s: float) -> int:
        """KV blocks of the largest burst to expect now, whether they are kept free or not."""
        if now_s - self._peak_s >= IDLE_S:
            return 0
        return math.ceil(MARGIN * self._fade_peak(now_s))

    def _fade_peak(self, now_s: float) -> float:
        return float(self._peak_blocks * 0.5 ** ((now_s - self._peak_s) / HALF_LIFE_S))
