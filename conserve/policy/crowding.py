"""Whether an attempt that ran out of time was held up by online work, rather than by itself."""

from __future__ import annotations

from typing import Final, NamedTuple

HELD_UP_SHARE: Final = 0.5
"""Of its time: an attempt that had online work before it, or a shut window, for so long says nothing of its request."""


class Moment(NamedTuple):
    """Seconds: now, and those until now in which online requests were in the engine or the window was shut."""

    at_s: float
    online_busy_s: float = 0.0
    shut_s: float = 0.0


def was_crowded_out(begin: Moment, end: Moment) -> bool:
    """Whether an attempt from one moment to the other had no fair chance."""
    took_s = end.at_s - begin.at_s
    held_up_s = max(end.online_busy_s - begin.online_busy_s, end.shut_s - begin.shut_s)
    return took_s > 0 and held_up_s >= HELD_UP_SHARE * took_s


class ShutClock:
    """Adds up the time in which the window is shut. Times are seconds of any clock that does not go back."""

    def __init__(self) -> None:
        self._shut_s = 0.0
        self._since_s: float | None = None

    def note(self, now_s: float, *, is_shut: bool) -> None:
        """Takes note of how it is from now on."""
        self._shut_s = self.read(now_s)
        self._since_s = now_s if is_shut else None

    def read(self, now_s: float) -> float:
        """Seconds in which it was shut so far."""
        return self._shut_s + (now_s - self._since_s if self._since_s is not None else 0.0)
