from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.rate_limit import MINUTE_S, Bucket, draw, fill


def test_what_a_minute_brings_may_be_used_at_once_and_comes_back_evenly() -> None:
    bucket = fill(60, 100.0)
    for _ in range(60):
        bucket, wait_s = draw(bucket, 60, 1, 100.0)
        assert wait_s == 0
    bucket, wait_s = draw(bucket, 60, 1, 100.0)
    assert wait_s == pytest.approx(1.0)
    assert draw(bucket, 60, 1, 100.5).wait_s == pytest.approx(0.5)
    bucket, wait_s = draw(bucket, 60, 1, 101.0)
    assert wait_s == 0
    assert draw(bucket, 60, 1, 10_000.0).bucket.level == 59


def test_what_is_refused_costs_nothing() -> None:
    bucket = Bucket(0.5, 0.0)
    assert draw(bucket, 1, 1, 0.0).bucket.level == 0.5


def test_more_than_a_minute_s_worth_is_given_when_it_is_full_and_made_up_for() -> None:
    assert draw(Bucket(99, 0.0), 100, 250, 0.0).wait_s == pytest.approx(0.6)
    bucket, wait_s = draw(fill(100, 0.0), 100, 250, 0.0)
    assert (bucket.level, wait_s) == (-150, 0)
    assert draw(bucket, 100, 1, 0.0).wait_s == pytest.approx(151 * 0.6)


def test_a_clock_that_goes_back_brings_nothing() -> None:
    assert draw(Bucket(0, 100.0), 60, 1, 40.0).wait_s == pytest.approx(1.0)


@given(
    per_minute=st.floats(0.1, 1e6),
    steps=st.lists(st.tuples(st.floats(0, 90), st.floats(0, 100)), min_size=1, max_size=60),
)
def test_over_any_time_no_more_is_given_than_the_limit_and_one_minute_s_worth(
    per_minute: float, steps: list[tuple[float, float]]
) -> None:
    now_s, bucket, given_ = 0.0, fill(per_minute, 0.0), 0.0
    for pause_s, part in steps:
        now_s += pause_s
        amount = per_minute * part / 100
        bucket, wait_s = draw(bucket, per_minute, amount, now_s)
        given_ += amount if wait_s == 0 else 0.0
        assert given_ <= per_minute * (1 + now_s / MINUTE_S) * (1 + 1e-6)
        # Who waits as it was told to is let through.
        assert wait_s == 0 or draw(bucket, per_minute, amount, now_s + wait_s + 1e-6).wait_s == 0
