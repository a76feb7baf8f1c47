"""Which share of the latest online tokens came in time, from counters of all and of those that were late."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

MEMORY_S: Final = 30.0
LEAST_TOKENS: Final = 20.0
"""With fewer in memory nothing is known."""


@dataclass
class SloAttainment:
    """Of one kind of tokens, first ones or following ones."""

    _at_s: float = -math.inf
    _seen: tuple[float, float] = (0.0, 0.0)
    _tokens: float = 0.0
    _late: float = 0.0

    def observe(self, now_s: float, tokens: float, late: float) -> None:
        """So many there were so far, and so many of them late.

        Args:
            now_s: Now, by any clock.
            tokens: All, since the engine started; they begin again with it.
            late: Those of them that were late.
        """
        kept = math.exp(-max(0.0, now_s - self._at_s) / MEMORY_S)
        before_tokens, before_late = self._seen if tokens >= self._seen[0] else (0.0, 0.0)
        self._tokens = kept * self._tokens + tokens - before_tokens
        self._late = kept * self._late + max(0.0, late - before_late)
        self._at_s, self._seen = now_s, (tokens, late)

    @property
    def share(self) -> float | None:
        """The share that came in time; None where next to none came lately."""
        return 1.0 - self._late / self._tokens if self._tokens >= LEAST_TOKENS else None
