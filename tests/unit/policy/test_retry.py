from __future__ import annotations

import pytest

from conserve.policy.retry import RetryRule

RULE = RetryRule(most_attempts=5, first_delay_s=1.0, longest_delay_s=5.0, longest_s=60.0)


def test_delays_double_up_to_a_limit() -> None:
    assert [RULE.find_delay_s(attempts, 0.0, 1.0) for attempts in range(1, 6)] == [1.0, 2.0, 4.0, 5.0, None]


def test_those_that_failed_together_do_not_come_back_together() -> None:
    delays = {RULE.find_delay_s(2, 0.0, jitter) for jitter in (0.0, 0.25, 0.5, 1.0)}
    assert delays == {1.0, 1.25, 1.5, 2.0}


@pytest.mark.parametrize(("passed_s", "delay_s"), [(56.0, 4.0), (56.1, None)])
def test_after_some_time_there_is_no_further_attempt(passed_s: float, delay_s: float | None) -> None:
    assert RULE.find_delay_s(3, passed_s, 1.0) == delay_s
