from __future__ import annotations

from conserve.config import JobsSettings
from conserve.jobs.attempts import describe, pack, rule_of, unpack
from conserve.policy.retry import FailedAttempt, FaultKind

FAILURES = [
    FailedAttempt(FaultKind.TIMEOUT, 'slow "ü" | /', 1_700_000_000_000, 1_700_000_000_500),
    FailedAttempt(FaultKind.ENGINE_DIED, "it ended", 1_700_000_001_000, 1_700_000_002_000, alone=True),
]


def test_failures_are_stored_and_read_back() -> None:
    assert unpack(pack(FAILURES)) == FAILURES
    assert unpack("") == []


def test_every_reason_is_told() -> None:
    told = describe(FAILURES, "there are no more attempts")
    assert told.startswith("Given up after 2 attempts: there are no more attempts. ")
    assert 'timeout: slow "ü" | /' in told
    assert "2 (alone): engine_died: it ended" in told
    assert describe(FAILURES[:1], "x").startswith("Given up after 1 attempt: x.")


def test_what_is_told_has_a_limit() -> None:
    failures = [FailedAttempt(FaultKind.ENGINE_FAULT, "x" * 300, 0, 1)] * 100
    assert len(describe(failures, "y")) <= 4_000


def test_the_rule_is_that_of_the_settings() -> None:
    rule = rule_of(JobsSettings())
    assert (rule.most_attempts, rule.suspicions) == (5, 2)
    assert rule.first_delay_s <= rule.longest_delay_s < rule.longest_s
