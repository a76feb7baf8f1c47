from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.deadline_floor import MOST_SAVED, FloorBudget


def test_without_a_floor_nothing_is_granted() -> None:
    floor = FloorBudget()
    assert floor.limit_ms(10.0, 0.0) == 0.0
    assert not floor.is_open
    floor.charge(100.0)
    assert floor.limit_ms(10.0, 0.5) == 20.0


def test_what_is_not_used_is_saved_and_what_is_used_is_gone() -> None:
    floor = FloorBudget()
    assert floor.limit_ms(9.0, 0.1) == pytest.approx(10.0)
    floor.charge(9.0)
    assert floor.limit_ms(9.0, 0.1) == pytest.approx(11.0)
    floor.charge(10.5)
    assert floor.limit_ms(9.0, 0.1) == pytest.approx(10.5)
    floor.charge(30.0)
    assert floor.limit_ms(9.0, 0.1) == pytest.approx(10.0)


def test_no_more_is_saved_than_of_some_iterations() -> None:
    floor = FloorBudget()
    for _ in range(100):
        floor.limit_ms(9.0, 0.1)
        floor.charge(9.0)
    assert floor.limit_ms(9.0, 0.1) == pytest.approx(10.0 + MOST_SAVED)


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 1)), min_size=1, max_size=50), st.floats(0.01, 0.5))
def test_offline_requests_never_get_more_than_their_share(steps: list[tuple[float, float]], share: float) -> None:
    """However much of each limit is used."""
    floor = FloorBudget()
    online_ms = offline_ms = 0.0
    for alone_ms, part in steps:
        used_ms = part * (floor.limit_ms(alone_ms, share) - alone_ms)
        floor.charge(alone_ms + used_ms)
        online_ms, offline_ms = online_ms + alone_ms, offline_ms + used_ms
    assert offline_ms <= share * (online_ms + offline_ms) * (1 + 1e-6)
