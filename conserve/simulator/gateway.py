"""A gateway that limits offline requests in flight by the latencies it sees, as llm-d's does: no change to the engine.

Additive increase, multiplicative decrease, once a second, on the median of the latest times to the first token against
the objective and on online requests that wait.
"""

from __future__ import annotations

from typing import Final

PERIOD_S: Final = 1.0
DECREASE: Final = 0.5
LEAST: Final = 1


class ConcurrencyLimit:
    """Of one replica.

    Args:
        most: Offline requests in flight, at most.
        ttft_slo_ms: Objective.
    """

    def __init__(self, most: int, ttft_slo_ms: float) -> None:
        self.limit = LEAST
        self._most = most
        self._slo_ms = ttft_slo_ms

    def update(self, ttft_ms: float, waiting: int) -> int:
        """One period has passed.

        Args:
            ttft_ms: The longest time to a first token in it; 0 without any.
            waiting: Online requests that wait for their first token.
        """
        if ttft_ms > self._slo_ms or waiting > 1:
            self.limit = max(LEAST, int(self.limit * DECREASE))
        else:
            self.limit = min(self._most, self.limit + 1)
        return self.limit
