"""How much of something may be done in a minute: a token bucket, whose contents are a value.

The bucket holds what a minute brings and fills up evenly, so that who has rested may use a minute's worth at once, and
twice that in the first minute; over longer times no more than the limit is let through.
"""

from __future__ import annotations

from typing import NamedTuple

MINUTE_S = 60.0


class Bucket(NamedTuple):
    """A bucket as it was at some time, in seconds of a clock that never goes back. Below 0 it owes something."""

    level: float
    at_s: float


class Draught(NamedTuple):
    """What came of asking a bucket for something: `wait_s` is 0 where it was given, otherwise when to ask again."""

    bucket: Bucket
    wait_s: float


def fill(per_minute: float, now_s: float) -> Bucket:
    """A bucket that is full."""
    return Bucket(per_minute, now_s)


def draw(bucket: Bucket, per_minute: float, amount: float, now_s: float) -> Draught:
    """Takes an amount out of a bucket, if it is there.

    What is more than a whole minute's is given when the bucket is full, and owed: it would never be given otherwise.

    Args:
        bucket: As it was left.
        per_minute: The limit, more than 0.
        amount: What is asked for.
        now_s: Now, by the clock of the bucket.
    """
    level = min(per_minute, bucket.level + max(0.0, now_s - bucket.at_s) * per_minute / MINUTE_S)
    missing = min(amount, per_minute) - level
    if missing > 1e-9 * per_minute:
        return Draught(Bucket(level, now_s), missing * MINUTE_S / per_minute)
    return Draught(Bucket(level - amount, now_s), 0.0)
