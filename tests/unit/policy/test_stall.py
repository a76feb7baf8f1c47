from __future__ import annotations

import pytest

from conserve.policy.stall import LONGEST_GAP_S, StallWatch

LIMIT_S = 60.0


@pytest.fixture
def watch() -> StallWatch:
    watch = StallWatch(LIMIT_S)
    watch.look(7, True, 100.0)
    return watch


def look_each_second(watch: StallWatch, since_s: float, seconds: int, *, has_online: bool = True) -> None:
    for second in range(1, seconds + 1):
        watch.look(7, has_online, since_s + second)


def test_an_engine_that_ends_no_iteration_is_stalled(watch: StallWatch) -> None:
    look_each_second(watch, 100.0, 60)
    assert not watch.is_stalled
    watch.look(7, True, 161.0)
    assert watch.is_stalled


def test_with_each_iteration_the_time_begins_anew(watch: StallWatch) -> None:
    look_each_second(watch, 100.0, 60)
    watch.look(8, True, 161.0)
    watch.look(7, True, 162.0)
    look_each_second(watch, 162.0, 60)
    assert not watch.is_stalled


def test_an_engine_without_online_requests_may_rest(watch: StallWatch) -> None:
    look_each_second(watch, 100.0, 1_000, has_online=False)
    assert not watch.is_stalled
    look_each_second(watch, 1_100.0, 60)
    assert not watch.is_stalled


def test_who_was_stopped_learns_nothing_of_the_engine(watch: StallWatch) -> None:
    watch.look(7, True, 10_000.0)
    look_each_second(watch, 10_000.0, int(LIMIT_S - LONGEST_GAP_S))
    assert not watch.is_stalled
    watch.look(7, True, 10_100.0)
    assert watch.is_stalled


def test_a_stalled_engine_stays_so(watch: StallWatch) -> None:
    look_each_second(watch, 100.0, 61)
    watch.look(8, False, 162.0)
    assert watch.is_stalled
