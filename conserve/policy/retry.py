"""When a request that has failed is tried again, and whether."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RetryRule:
    """Limits of attempts.

    Attributes:
        most_attempts: No more.
        first_delay_s, longest_delay_s: Before the second attempt, and before any.
        longest_s: From the first attempt on, no new one begins later.
    """

    most_attempts: int
    first_delay_s: float
    longest_delay_s: float
    longest_s: float

    def find_delay_s(self, attempts: int, passed_s: float, jitter: float) -> float | None:
        """How long to wait before the next attempt: twice as long each time, less a random part.

        Full jitter (Brooker, "Exponential Backoff and Jitter", 2015): those that failed together do not come back together.
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
