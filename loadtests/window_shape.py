"""Other arrivals for the requests of a window: begun at another time, or in a tide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from loadtests.traces import TraceRequest

_TIDE_STEPS: Final = 1_000


def turn(window: Sequence[TraceRequest], generator: np.random.Generator) -> list[TraceRequest]:
    """Begins at another time, and comes to what lies before it last.

    The last request would else always be due just when the arrivals end: where they come in bursts, in one.
    """
    end_s = window[-1].arrival_s
    begin_s = float(generator.uniform(0.0, end_s))
    later = [replace(request, arrival_s=(request.arrival_s - begin_s) % end_s) for request in window]
    return sorted(later, key=lambda request: request.arrival_s)


def bend(window: Sequence[TraceRequest], duration_s: float, ratio: float) -> list[TraceRequest]:
    """Moves arrivals so that their rate is lowest at both ends of `duration_s` and `ratio` times as high in between."""
    swing = (ratio - 1.0) / (ratio + 1.0)
    times = np.linspace(0.0, 1.0, _TIDE_STEPS)
    # The integral of 1 - swing * cos(2 pi t): share of the arrivals before t. Arrivals are moved by its inverse.
    shares = times - swing * np.sin(2 * np.pi * times) / (2 * np.pi)
    return [
        replace(request, arrival_s=float(np.interp(request.arrival_s / duration_s, shares, times)) * duration_s)
        for request in window
    ]
