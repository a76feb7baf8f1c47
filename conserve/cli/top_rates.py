"""Rates out of totals that are looked at again and again."""

from __future__ import annotations

from collections import deque

from conserve.client import ClusterStatus

WINDOW_S = 10.0
"""Rates are those of so long, so that they do not jump with each commit."""


class Rates:
    """Offline tokens a second of each replica, prompt and output."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[str, int]]] = deque()

    def take(self, status: ClusterStatus, now_s: float) -> None:
        """Takes a look in, made at `now_s` (monotonic)."""
        totals = {one.replica_id: one.offline_prompt_tokens + one.offline_output_tokens for one in status.replicas}
        self._looks.append((now_s, totals))
        while len(self._looks) > 2 and self._looks[1][0] <= now_s - WINDOW_S:
            self._looks.popleft()

    def tokens_per_s(self, replica_id: str) -> float | None:
        """Of one replica; None until it was looked at twice."""
        seen = [(at_s, totals[replica_id]) for at_s, totals in self._looks if replica_id in totals]
        if len(seen) < 2 or seen[-1][0] <= seen[0][0]:
            return None
        # A replica that has begun anew counts from zero.
        return max(0, seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])

    def total_per_s(self) -> float | None:
        """Of all replicas that were looked at last."""
        found = [self.tokens_per_s(replica_id) for replica_id in (self._looks[-1][1] if self._looks else ())]
        known = [rate for rate in found if rate is not None]
        return sum(known) if known else None
