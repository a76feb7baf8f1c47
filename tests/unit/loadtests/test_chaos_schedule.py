"""Schedules of faults: the same for a seed, and fair to all kinds."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.chaos.schedule import HOLD_S, PAUSE_S, FaultKind, FaultType, draw_faults, scale

FAULTS = [FaultType(FaultKind.KILL, "replica"), FaultType(FaultKind.STOP, "redis"), FaultType(FaultKind.LINK_CUT)]


@given(st.integers(), st.integers(1, 50))
def test_a_seed_says_it_all(seed: int, count: int) -> None:
    assert list(islice(draw_faults(seed, FAULTS), count)) == list(islice(draw_faults(seed, FAULTS), count))


def test_other_seeds_say_otherwise() -> None:
    orders = {tuple(draw.fault for draw in islice(draw_faults(seed, FAULTS), 12)) for seed in range(20)}
    assert len(orders) > 10


@given(st.integers(), st.integers(0, 60))
def test_each_comes_as_often_as_any_other(seed: int, count: int) -> None:
    draws = list(islice(draw_faults(seed, FAULTS), count))
    counts = Counter(draw.fault for draw in draws)
    assert max(counts.values(), default=0) - min(counts[fault] for fault in FAULTS) <= 1
    assert [draw.number for draw in draws] == list(range(count))
    for draw in draws:
        assert PAUSE_S[0] <= draw.pause_s <= PAUSE_S[1]
        assert HOLD_S[0] <= draw.hold_s <= HOLD_S[1]


def test_there_has_to_be_a_fault() -> None:
    with pytest.raises(ValueError, match="no faults"):
        next(draw_faults(1, []))


def test_names_and_strengths() -> None:
    assert [fault.name for fault in FAULTS] == ["SIGKILL replica", "SIGSTOP redis", "no packets at all"]
    assert [scale(strength, (2.0, 4.0)) for strength in (0.0, 0.5, 1.0)] == [2.0, 3.0, 4.0]
