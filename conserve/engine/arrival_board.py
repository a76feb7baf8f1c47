"""Announcements of online requests, in memory shared by the front of an engine, its scheduler and its workers.

The front announces a request before it is tokenised, with the time at which its first token is due, so that a pass of
offline work that is running can be stopped for it. The scheduler settles the announcement when the request arrives, or
when it has been waited for long enough; so one that never comes (refused, cancelled, failed) costs a short wait.

Each announcement has a number of its own, which travels with the request (with each of them, if it becomes several).
Bare counts of announcements and arrivals would run apart with the first request that becomes four, or none.

Every word has one writer and is one aligned 64-bit float, so that no lock is needed.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from conserve.engine.shared_memory import create_file

SLOTS: Final = 512
"""Announcements that are not settled yet, at most; a request beyond them arrives unannounced."""
STALE_S: Final = 5.0
"""A slot that was not settled for so long may be used again: the engine was idle, so nobody has looked at it."""

_ANNOUNCED, _VERDICT, _STOP = range(3)  # words of the head
_HEAD_WORDS = 8
_NUMBER, _DUE, _AT, _SETTLED = range(4)  # columns of a slot
_SHAPE = (SLOTS, 4)
_BYTES = 8 * (_HEAD_WORDS + SLOTS * 4)


class Pending(NamedTuple):
    """What is announced and not settled.

    Attributes:
        due_s: When the earliest first token is due, by `time.monotonic`.
        announced_s: When the first of them was announced.
    """

    due_s: float
    announced_s: float


class ArrivalBoard:
    """The board, mapped into this process. `path` names it to the others."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size != _BYTES:
                raise ValueError(f"{path}: is no board of this version of ConServe")
            self._map = mmap.mmap(file.fileno(), _BYTES)
        self._head = memoryview(self._map).cast("d")
        self._slots = np.frombuffer(self._map, dtype=np.float64, offset=8 * _HEAD_WORDS).reshape(_SHAPE)

    @classmethod
    def create(cls) -> ArrivalBoard:
        """Makes a board; whoever made it removes it with `remove`."""
        return cls(create_file("conserve-arrivals-", _BYTES))

    def remove(self) -> None:
        """Removes the file. Who has mapped it can go on using it."""
        self.path.unlink(missing_ok=True)

    # The front.

    def announce(self, now_s: float, due_s: float) -> int:
        """Announces a request. Returns the number of the announcement, or 0 if there is no room for it.

        Args:
            now_s: Now, by `time.monotonic`.
            due_s: When its first token is due; `inf` without an objective.
        """
        number = int(self._head[_ANNOUNCED])
        for _ in range(SLOTS):
            number += 1
            slot = self._slots[number % SLOTS]
            is_over = slot[_NUMBER] == slot[_SETTLED] or np.isnan(slot[_DUE])
            if is_over or now_s - slot[_AT] > STALE_S:
                slot[_DUE], slot[_AT] = due_s, now_s
                slot[_NUMBER] = number
                self._head[_ANNOUNCED] = number
                return number
        return 0

    def retire(self, number: int) -> None:
        """Takes an announcement back: the request was answered, refused or cancelled. Harmless if it was settled."""
        if number > 0 and self._slots[number % SLOTS, _NUMBER] == number:
            self._slots[number % SLOTS, _DUE] = np.nan

    # The scheduler.

    def settle(self, number: int) -> None:
        """The announced request is there."""
        if 0 < number <= self.announced and self._slots[number % SLOTS, _NUMBER] == number:
            self._slots[number % SLOTS, _SETTLED] = number

    def settle_overdue(self, announced_before_s: float) -> int:
        """Waits no longer for what was announced before this time and has not come. Returns how many they are."""
        slots = self._slots
        # Read once: the front may use a slot again in between.
        numbers = slots[:, _NUMBER].copy()
        overdue = (numbers != slots[:, _SETTLED]) & (slots[:, _AT] < announced_before_s)
        missing = overdue & ~np.isnan(slots[:, _DUE])
        slots[overdue, _SETTLED] = numbers[overdue]
        return int(np.count_nonzero(missing))

    # Scheduler and workers.

    @property
    def announced(self) -> int:
        """The number of the latest announcement: another one than a moment ago says that there is something new."""
        return int(self._head[_ANNOUNCED])

    def pending(self) -> Pending | None:
        """What is announced and neither settled nor taken back; takes some 10 microseconds."""
        slots = self._slots
        waiting = (slots[:, _NUMBER] != slots[:, _SETTLED]) & ~np.isnan(slots[:, _DUE])
        if not waiting.any():
            return None
        return Pending(float(slots[waiting, _DUE].min()), float(slots[waiting, _AT].min()))

    # The workers of one engine, among themselves.

    def publish_verdict(self, place: float, *, stops: bool) -> None:
        """The first rank tells the others that it has come to a place in its passes, and whether it stops there.

        Places grow from layer to layer and from pass to pass.
        """
        if stops:
            self._head[_STOP] = place
        self._head[_VERDICT] = place

    def read_verdict(self, place: float) -> bool | None:
        """Whether the first rank has stopped at a place; None if it has not come there yet."""
        if self._head[_VERDICT] < place:
            return None
        # It may be in its next pass by now: the place of its last stop is remembered.
        return self._head[_STOP] == place
