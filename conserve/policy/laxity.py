"""How urgent a batch is: the time that is left less the time that its work takes."""

from __future__ import annotations

import math
from typing import Final

from conserve.policy.admission import Capacity, Promise, predict_end

FIRST_CONCERN: Final = 0.25
"""A batch begins to rise when its spare time is less than this part of the time that is left to it."""


def find_laxity_s(promises: list[Promise], own: Promise, capacity: Capacity) -> float:
    """Spare time of a batch; negative if it will be late, `-inf` if its end cannot be seen."""
    end_s = predict_end(promises, own, capacity)
    return own.deadline_s - end_s if end_s is not None else -math.inf


def find_urgency(laxity_s: float, left_s: float) -> float:
    """From 0 (on track: it is treated as if it had no deadline) to 1 (late).

    It rises smoothly and early: with `FIRST_CONCERN` of the time left as spare time it begins, without any it is 1.

    Args:
        laxity_s: Spare time.
        left_s: Time to the deadline.
    """
    if left_s <= 0 or laxity_s <= 0:
        return 1.0
    return max(0.0, 1.0 - laxity_s / (FIRST_CONCERN * left_s))
