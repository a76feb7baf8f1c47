"""Which fault comes when, from a seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

PAUSE_S: Final = (0.2, 1.5)
"""From the end of one fault to the next."""
HOLD_S: Final = (1.0, 4.0)
"""From a fault to its end, where it has one: a process that stands still goes on, say."""
DELAY_MS: Final = (20, 250)
"""Of each packet, in each direction."""
LOSS: Final = (0.05, 0.4)
STEP_S: Final = (2.0, 120.0)
"""Of the clock, forward or back."""


class FaultKind(StrEnum):
    """What goes wrong. Values read as in reports."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    REDIS_RESTART = "restart of Redis"
    STORAGE_READ_ONLY = "storage read-only"
    STORAGE_FULL = "storage full"
    LINK_DELAY = "packets delayed"
    LINK_LOSS = "packets dropped"
    LINK_CUT = "no packets at all"
    CLOCK_FORWARD = "clock forward"
    CLOCK_BACK = "clock back"


class FaultType(NamedTuple):
    """A kind of fault, and the kind of process that it hits, if it hits one."""

    kind: FaultKind
    target: str = ""

    @property
    def name(self) -> str:
        """As in reports."""
        return f"{self.kind} {self.target}".strip()


class Draw(NamedTuple):
    """One fault of a schedule.

    Attributes:
        number: Its place, from 0 on.
        fault: What goes wrong.
        pause_s: Before it.
        hold_s: Until its end, where it has one.
        victim: From 0 to 1: which of several processes of a kind, in the order of their ids.
        strength: From 0 to 1: how long a delay is, say.
    """

    number: int
    fault: FaultType
    pause_s: float
    hold_s: float
    victim: float
    strength: float


def draw_faults(seed: int, faults: Sequence[FaultType]) -> Iterator[Draw]:
    """Draws faults for ever: all of them once, in a random order, then all of them in another one, and so on.

    So each comes about as often as any other, however long a run is, and every pair of neighbours can come.

    Raises:
        ValueError: there are none to draw from.
    """
    if not faults:
        raise ValueError("no faults to draw from")
    generator = random.Random(seed)
    number = 0
    while True:
        for fault in generator.sample(list(faults), len(faults)):
            yield Draw(
                number=number,
                fault=fault,
                pause_s=generator.uniform(*PAUSE_S),
                hold_s=generator.uniform(*HOLD_S),
                victim=generator.random(),
                strength=generator.random(),
            )
            number += 1


def scale(strength: float, bounds: tuple[float, float]) -> float:
    """A value between two bounds."""
    low, high = bounds
    return low + strength * (high - low)
