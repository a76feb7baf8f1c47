"""When a request that has failed is tried again, how, and when it is given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """Why an attempt at a request ended without a result."""

    ENGINE_FAULT = "engine_fault"  # The engine failed at it and lives on.
    ENGINE_DIED = "engine_died"  # The engine ended while it worked on it.
    TIMEOUT = "timeout"  # It was not answered within `jobs.request_timeout_s`.
    LEASE_EXPIRED = "lease_expired"  # Its replica was not heard of any more: killed, hung, or cut off.
    REPLICA_FAULT = "replica_fault"  # Something around the engine failed in a way that was not foreseen.
    UNUSABLE = "unusable"  # The request cannot be run as it stands in the file.

    @property
    def can_pass(self) -> bool:
        """Whether another attempt may succeed."""
        return self is not FaultKind.UNUSABLE

    @property
    def is_suspicious(self) -> bool:
        """Whether the request may have done harm to others that ran with it."""
        return self in _SUSPICIOUS


_SUSPICIOUS = frozenset({FaultKind.ENGINE_DIED, FaultKind.TIMEOUT, FaultKind.LEASE_EXPIRED})


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One attempt that ended without a result.

    Attributes:
        kind, reason: Why; the reason is for people.
        began_ms, ended_ms: When, Unix milliseconds by the clock of the Redis server.
        alone: Nothing else of a batch ran on the replica.
    """

    kind: FaultKind
    reason: str
    began_ms: int
    ended_ms: int
    alone: bool = False


@dataclass(frozen=True, slots=True)
class NextAttempt:
    """The request is tried again after `delay_s`; `alone` on its replica if it is under suspicion."""

    delay_s: float
    alone: bool


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The request goes to the error file; `code` and `because` tell why."""

    code: str
    because: str


@dataclass(frozen=True)
class RetryRule:
    """Limits of attempts.

    Attributes:
        most_attempts: No more.
        first_delay_s, longest_delay_s: Before the second attempt, and before any.
        longest_s: From the first attempt on, no new one begins later.
        suspicions: Attempts that may have brought down a replica or ran out of time, until the request is run alone.
    """

    most_attempts: int
    first_delay_s: float
    longest_delay_s: float
    longest_s: float
    suspicions: int = 2

    def find_delay_s(self, attempts: int, passed_s: float, jitter: float) -> float | None:
        """How long to wait before the next attempt: twice as long each time, less a random part.

        Equal jitter (Brooker, "Exponential Backoff and Jitter", 2015): those that failed together do not come back
        together, and none comes back at once.
        The time is a length, never a moment: a moment that is stored lets all of them come at once after an outage.

        Args:
            attempts: Made so far, at least 1.
            passed_s: Since the first one began.
            jitter: Random, from 0 to 1.

        Returns:
            None for no further attempt.
        """
        if attempts >= self.most_attempts:
            return None
        delay_s = min(self.longest_delay_s, self.first_delay_s * 2.0 ** (attempts - 1)) * (0.5 + 0.5 * jitter)
        return delay_s if passed_s + delay_s <= self.longest_s else None

    def decide(self, failures: Sequence[FailedAttempt], jitter: float) -> NextAttempt | GivenUp:
        """What becomes of a request after its newest failure.

        A request that has repeatedly ended a replica, or not come to its end in time, may be the cause or may only have
        been there. It is run alone, once: fails it again like that, it was the cause.

        Args:
            failures: All of its failed attempts, the newest last; at least one.
            jitter: Random, from 0 to 1.
        """
        newest = failures[-1]
        if not newest.kind.can_pass:
            return GivenUp("request_unusable", "it cannot be run")
        if newest.alone and newest.kind.is_suspicious:
            return GivenUp("poison_request", "it ended its replica or ran out of time, the last time alone")
        passed_s = (newest.ended_ms - failures[0].began_ms) / 1e3
        delay_s = self.find_delay_s(len(failures), passed_s, jitter)
        if delay_s is None:
            if len(failures) >= self.most_attempts:
                return GivenUp("max_attempts_exceeded", "there are no more attempts")
            return GivenUp("retry_time_exceeded", f"attempts may begin for {self.longest_s:g} s")
        return NextAttempt(delay_s, alone=sum(one.kind.is_suspicious for one in failures) >= self.suspicions)
