"""The part of iterations that late batches get beside online requests, whatever the objectives of those leave."""

from __future__ import annotations

from typing import Final

MOST_SAVED: Final = 20.0
"""A part of a prompt may cost more than one iteration's grant: what was not used is saved for so many iterations."""
LARGEST_SHARE: Final = 0.9


class FloorBudget:
    """How long iterations may be for the sake of a floor.

    A share of the engine's time is granted: an iteration may take longer than its online requests alone by as much as
    makes up that share, and by what earlier ones did not use.
    """

    def __init__(self) -> None:
        self._saved_ms = 0.0
        self._granted_ms = 0.0
        self._online_ms: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether an iteration was limited by `limit_ms` that is still to be charged."""
        return self._online_ms is not None

    def limit_ms(self, online_ms: float, share: float) -> float:
        """The longest time of the next iteration that the floor allows; 0 without a floor.

        Args:
            online_ms: Predicted time of its online requests alone.
            share: Of the engine's time.
        """
        if share <= 0:
            self._saved_ms, self._online_ms = 0.0, None
            return 0.0
        share = min(share, LARGEST_SHARE)
        self._granted_ms = online_ms * share / (1 - share)
        self._online_ms = online_ms
        return online_ms + self._granted_ms + self._saved_ms

    def charge(self, iteration_ms: float) -> None:
        """The iteration was scheduled, and has this predicted time."""
        if self._online_ms is None:
            return
        saved_ms = self._saved_ms + self._granted_ms - max(0.0, iteration_ms - self._online_ms)
        self._saved_ms = min(MOST_SAVED * self._granted_ms, max(0.0, saved_ms))
        self._online_ms = None
