"""Which application to try things out in, and how much is asked of it."""

from __future__ import annotations

import random
from enum import StrEnum
from pathlib import Path
from typing import Final

from loadtests.chaos.light import LightStack
from loadtests.chaos.real import RealStack
from loadtests.chaos.stack import Stack


class EngineName(StrEnum):
    """Which engine answers."""

    LIGHT = "light"
    REAL = "real"


REQUESTS: Final = {EngineName.LIGHT: (5, 60), EngineName.REAL: (4, 16)}
"""Of a batch, drawn evenly."""
CLIENTS: Final = {EngineName.LIGHT: 4, EngineName.REAL: 2}
"""Online ones, at most."""


def make_stack(engine: EngineName, folder: Path, replicas: int, seed: int) -> Stack:
    """The application to inject faults into."""
    if engine is EngineName.REAL:
        return RealStack(folder, replicas)
    return LightStack(folder, replicas, random.Random(seed))
