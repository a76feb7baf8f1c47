"""What online work leaves to the offline requests of a replica while they run."""

from __future__ import annotations

import dataclasses
import time

from conserve.harvest.attempt import Fault, OfflineEngine
from conserve.policy.crowding import HELD_UP_SHARE, Moment, ShutClock, was_crowded_out
from conserve.policy.retry import FaultKind


class Crowding:
    """Tells attempts that ran out of time from those that had no room.

    Args:
        engine: Runs the requests of both kinds.
    """

    def __init__(self, engine: OfflineEngine) -> None:
        self._engine = engine
        self._shut = ShutClock()
        self.latest = Moment(time.monotonic())
        """As of the last `note`: an attempt that begins now is counted from then on."""

    def note(self, window: int) -> None:
        """Takes note of the window, some times a second."""
        self._shut.note(time.monotonic(), is_shut=window == 0)
        self.latest = self._look()

    def excuse(self, fault: Fault, begin: Moment) -> Fault:
        """The fault of an attempt; none that counts, if it ran out of time for want of room."""
        if fault.kind is not FaultKind.TIMEOUT or not was_crowded_out(begin, self._look()):
            return fault
        reason = f"{fault.reason}; for {HELD_UP_SHARE:.0%} of that or more, online requests were before it"
        return dataclasses.replace(fault, kind=None, reason=reason, had_room=False)

    def _look(self) -> Moment:
        now_s = time.monotonic()
        return Moment(now_s, self._engine.stats().online_busy_s, self._shut.read(now_s))
