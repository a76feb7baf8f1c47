from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.outlook import Outlook, WaitRecord, predict_ttft_ms, predict_wait_ms

times = st.floats(0.0, 1e5)


@given(times, times, times, st.floats(1.0, 1e5))
def test_more_before_a_request_never_makes_it_sooner(
    wait_ms: float, ahead_ms: float, more: float, tokens: float
) -> None:
    outlook = Outlook(wait_ms, iteration_ms=5.0, prompt_token_ms=0.1, iteration_tokens=512)
    before = predict_ttft_ms(outlook, ahead_ms, tokens)
    assert predict_ttft_ms(outlook._replace(wait_ms=wait_ms + more), ahead_ms, tokens) >= before
    assert predict_ttft_ms(outlook, ahead_ms + more, tokens) >= before
    assert predict_ttft_ms(outlook, ahead_ms, tokens + more) >= before


def test_a_prompt_takes_its_tokens_and_an_iteration_for_each_part() -> None:
    outlook = Outlook(20.0, iteration_ms=10.0, prompt_token_ms=0.5, iteration_tokens=100)
    assert predict_ttft_ms(outlook, 7.0, 250) == pytest.approx(20 + 7 + 125 + 3 * 10)


def test_what_is_not_known_is_compared_by_tokens() -> None:
    assert predict_ttft_ms(Outlook(), 0.0, 200) > predict_ttft_ms(Outlook(), 0.0, 100) > 0


@given(st.floats(0.1, 1e4), st.floats(0.0, 1e4), st.floats(0.0, 1e4))
def test_a_stop_never_makes_anybody_wait_longer_than_the_iteration_does(
    length_ms: float, stop_ms: float, let_go_ms: float
) -> None:
    whole = predict_wait_ms(length_ms, math.inf, 0.0)
    assert whole == pytest.approx(length_ms / 2)
    stopped = predict_wait_ms(length_ms, min(stop_ms, length_ms / 10), let_go_ms)
    assert 0 <= stopped <= whole * 1.0001


def test_work_that_can_be_stopped_counts_for_the_time_of_the_stop() -> None:
    assert predict_wait_ms(1_000.0, 20.0, 0.0) == pytest.approx(20.0)
    assert predict_wait_ms(1_000.0, 20.0, 100.0) == pytest.approx((100 * 100 / 2 + 900 * 20) / 1_000)
    assert predict_wait_ms(0.0, 20.0, 0.0) == 0.0


def test_record_is_half_of_iterations_that_follow_each_other() -> None:
    record = WaitRecord()
    for number in range(100):
        record.observe(number * 0.2, number * 0.2 + 0.2)
    assert record.mean_ms == pytest.approx(100.0)


def test_idle_time_counts_as_no_wait() -> None:
    record = WaitRecord()
    for number in range(100):
        record.observe(number * 0.2, number * 0.2 + 0.1)
    assert record.mean_ms == pytest.approx(25.0, rel=0.05)
    record.observe(60.0, 60.1)
    assert record.mean_ms < 1.0


def test_times_that_overlap_are_counted_once() -> None:
    record = WaitRecord()
    record.observe(0.0, 1.0)
    assert record.observe(0.5, 1.0) == pytest.approx(500.0)
    assert record.observe(0.5, 2.0) == pytest.approx(500.0)
