from __future__ import annotations

import math

import pytest

from conserve.policy.deadline_scaling import DeadlineScaling, find_missing_replicas
from conserve.policy.laxity import Outlook
from conserve.policy.ordering import JobDemand

NOW_S = 1_000.0


def demand(name: str, left_s: float = 100.0, *, promised: bool = True) -> JobDemand:
    return JobDemand(name, "m", 0.0, NOW_S + left_s, ready=1, promised=promised)


def outlook(laxity_s: float) -> Outlook:
    return Outlook(None, laxity_s, 1.0)


@pytest.mark.parametrize(
    ("laxity_s", "left_s", "replicas", "missing"),
    [
        (0.0, 100.0, 2, 0),
        (10.0, 100.0, 2, 0),
        (-1.0, 100.0, 2, 1),
        (-100.0, 100.0, 2, 2),  # it takes twice as long as there is time
        (-250.0, 100.0, 4, 10),
        (-10.0, 0.0, 2, 0),
    ],
)
def test_late_work_wants_as_many_as_it_lacks(laxity_s: float, left_s: float, replicas: int, missing: int) -> None:
    assert find_missing_replicas(laxity_s, left_s, replicas) == missing


def test_the_ceiling_holds_even_for_what_has_no_end() -> None:
    scaling = DeadlineScaling(most=3)
    assert scaling.settle([demand("a")], {"a": outlook(-math.inf)}, 1, NOW_S) == 3


def test_what_was_not_promised_wants_nothing() -> None:
    scaling = DeadlineScaling(most=3)
    assert scaling.settle([demand("a", promised=False)], {"a": outlook(-50.0)}, 2, NOW_S) == 0


def test_it_stays_wanted_until_the_batch_has_ended_and_does_not_grow_by_itself() -> None:
    scaling = DeadlineScaling(most=8)
    assert scaling.settle([demand("a")], {"a": outlook(-100.0)}, 2, NOW_S) == 2
    assert scaling.settle([demand("a")], {"a": outlook(-100.0)}, 4, NOW_S) == 2, "those it has got are not counted"
    assert scaling.settle([demand("a")], {"a": outlook(50.0)}, 4, NOW_S) == 2
    assert scaling.settle([], {}, 4, NOW_S) == 0


def test_a_batch_whose_time_is_over_wants_nothing_more() -> None:
    scaling = DeadlineScaling(most=8)
    assert scaling.settle([demand("a")], {"a": outlook(-100.0)}, 2, NOW_S) == 2
    assert scaling.settle([demand("a")], {"a": outlook(-100.0)}, 4, NOW_S + 100.0) == 0
