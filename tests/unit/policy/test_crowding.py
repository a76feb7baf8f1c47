from __future__ import annotations

import pytest

from conserve.policy.crowding import Moment, ShutClock, was_crowded_out

BEGIN = Moment(100.0, 50.0, 20.0)


@pytest.mark.parametrize(
    ("online_busy_s", "shut_s", "crowded"),
    [(0.0, 0.0, False), (4.9, 4.9, False), (5.0, 0.0, True), (0.0, 5.0, True), (10.0, 10.0, True)],
)
def test_half_of_the_time_behind_online_work_is_no_fair_chance(
    online_busy_s: float, shut_s: float, crowded: bool
) -> None:
    end = Moment(BEGIN.at_s + 10.0, BEGIN.online_busy_s + online_busy_s, BEGIN.shut_s + shut_s)
    assert was_crowded_out(BEGIN, end) == crowded


def test_no_time_is_no_excuse() -> None:
    assert not was_crowded_out(BEGIN, BEGIN)


def test_the_time_in_which_the_window_is_shut_is_added_up() -> None:
    clock = ShutClock()
    assert clock.read(5.0) == 0.0
    clock.note(10.0, is_shut=True)
    clock.note(12.0, is_shut=True)
    assert clock.read(13.0) == 3.0
    clock.note(14.0, is_shut=False)
    clock.note(20.0, is_shut=True)
    assert clock.read(21.0) == 5.0
