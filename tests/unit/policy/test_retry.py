from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.retry import FailedAttempt, FaultKind, GivenUp, NextAttempt, RetryRule

RULE = RetryRule(most_attempts=5, first_delay_s=1.0, longest_delay_s=5.0, longest_s=60.0)
KINDS = {kind.value: kind for kind in FaultKind}


def fail(*kinds: str, attempt_s: float = 1.0, alone: int = 0) -> list[FailedAttempt]:
    """Attempts that failed one after the other; the last `alone` of them ran alone."""
    length_ms = round(attempt_s * 1e3)
    return [
        FailedAttempt(KINDS[kind], "it did", i * length_ms, (i + 1) * length_ms, alone=i >= len(kinds) - alone)
        for i, kind in enumerate(kinds)
    ]


def test_delays_double_up_to_a_limit() -> None:
    assert [RULE.find_delay_s(attempts, 0.0, 1.0) for attempts in range(1, 6)] == [1.0, 2.0, 4.0, 5.0, None]


def test_those_that_failed_together_do_not_come_back_together() -> None:
    delays = {RULE.find_delay_s(2, 0.0, jitter) for jitter in (0.0, 0.25, 0.5, 1.0)}
    assert delays == {1.0, 1.25, 1.5, 2.0}


@pytest.mark.parametrize(("passed_s", "delay_s"), [(56.0, 4.0), (56.1, None)])
def test_after_some_time_there_is_no_further_attempt(passed_s: float, delay_s: float | None) -> None:
    assert RULE.find_delay_s(3, passed_s, 1.0) == delay_s


def test_a_fault_that_can_pass_is_tried_again() -> None:
    for attempts in range(1, 5):
        assert RULE.decide(fail(*["engine_fault"] * attempts), 1.0) == NextAttempt(min(2.0 ** (attempts - 1), 5), False)


def test_a_request_that_cannot_be_run_is_not_tried_again() -> None:
    decision = RULE.decide(fail("unusable"), 0.5)
    assert isinstance(decision, GivenUp)
    assert decision.code == "request_unusable"


def test_attempts_and_time_are_capped() -> None:
    for failures, code in (
        (fail(*["engine_fault"] * 5), "max_attempts_exceeded"),
        (fail("engine_fault", attempt_s=60.0), "retry_time_exceeded"),
    ):
        decision = RULE.decide(failures, 0.5)
        assert isinstance(decision, GivenUp)
        assert decision.code == code


@pytest.mark.parametrize("kind", ["engine_died", "timeout", "lease_expired"])
def test_a_suspect_is_run_alone_once(kind: str) -> None:
    assert RULE.decide(fail(kind), 1.0) == NextAttempt(1.0, alone=False)
    assert RULE.decide(fail(kind, "engine_fault"), 1.0) == NextAttempt(2.0, alone=False)
    assert RULE.decide(fail(kind, "engine_fault", kind), 1.0) == NextAttempt(4.0, alone=True)
    decision = RULE.decide(fail(kind, "engine_fault", kind, kind, alone=1), 1.0)
    assert isinstance(decision, GivenUp)
    assert decision.code == "poison_request"


def test_a_suspect_that_harms_nobody_when_alone_keeps_its_attempts() -> None:
    failures = fail("timeout", "engine_died", "engine_fault", alone=1)
    assert RULE.decide(failures, 1.0) == NextAttempt(4.0, alone=True)


@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=20),
    attempt_s=st.floats(0.0, 100.0),
    jitter=st.floats(0.0, 1.0),
)
def test_every_request_comes_to_an_end(kinds: list[str], attempt_s: float, jitter: float) -> None:
    """Whatever goes wrong: a bounded number of attempts within a bounded time, and at most one suspicious one alone."""
    failures: list[FailedAttempt] = []
    now_s, alone = 0.0, False
    for kind in kinds:
        began_s, now_s = now_s, now_s + attempt_s
        failures.append(FailedAttempt(KINDS[kind], "", round(began_s * 1e3), round(now_s * 1e3), alone))
        decision = RULE.decide(failures, jitter)
        if isinstance(decision, GivenUp):
            break
        assert 0 < decision.delay_s <= RULE.longest_delay_s
        alone = decision.alone
        now_s += decision.delay_s
        assert now_s <= RULE.longest_s + 0.002
    assert len(failures) <= RULE.most_attempts
    assert sum(one.alone and one.kind.is_suspicious for one in failures) <= 1
