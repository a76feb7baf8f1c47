"""What is done for all tenants until one of them has had so much, while they share capacity by weight.

The fluid picture of `fairness`: generalized processor sharing (Parekh and Gallager, 1993). Each tenant with work left
is served at a rate that goes by its weight; what one that is through leaves goes to the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

from conserve.policy.fairness import find_weight


class SharedService:
    """Tenants that are served at the same time.

    Args:
        left: Tokens of the work that each tenant has.
        weights: Of tenants; 1 where it is not said.
    """

    def __init__(self, left: Mapping[str, float], weights: Mapping[str, float]) -> None:
        # Alone a tenant has everything, whatever its weight.
        self._weights = {tenant: find_weight(tenant, weights) if len(left) > 1 else 1.0 for tenant in left}
        ending = sorted((tokens / self._weights[tenant], tenant) for tenant, tokens in left.items())
        self._rounds = [rounds for rounds, _ in ending]
        self._done = [0.0, *accumulate(left[tenant] for _, tenant in ending)]
        served = [0.0, *accumulate(self._weights[tenant] for _, tenant in ending)]
        self._open = [served[-1] - weight for weight in served]

    def find_total(self, tenant: str, tokens: float) -> float:
        """Tokens of all tenants together that are done when a tenant has had so many, no more than it has work."""
        rounds = tokens / self._weights[tenant]
        ended = bisect_right(self._rounds, rounds)
        # Rounding must not make the last one wait for less than its own work.
        return max(tokens, self._done[ended] + rounds * max(0.0, self._open[ended]))
