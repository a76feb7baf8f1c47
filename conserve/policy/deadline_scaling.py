"""How many replicas more than online load needs, so that batches get what they were promised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from conserve.policy.laxity import Outlook
from conserve.policy.ordering import JobDemand


def find_missing_replicas(laxity_s: float, left_s: float, replicas: int) -> int:
    """So many more would have to harvest as these do for a batch to end in time; 0 where it will, or where it is over.

    Args:
        laxity_s: Its spare time; `-inf` where its end cannot be seen, for which no number is enough.
        left_s: Time to its deadline.
        replicas: How many harvest now.
    """
    if laxity_s >= 0 or left_s <= 0 or replicas <= 0:
        return 0
    if math.isinf(laxity_s):
        return replicas * 1_000
    return math.ceil(replicas * -laxity_s / left_s - 1e-9)


@dataclass
class DeadlineScaling:
    """What is wanted for the batches of one model.

    What was wanted for a batch stays wanted until it has ended: that it will be in time thanks to replicas that were
    started for it is no reason to stop them.

    Args:
        most: No more than so many.
    """

    most: int
    _wanted: dict[str, int] = field(default_factory=dict)

    @property
    def wanted(self) -> int:
        """Replicas beyond those for online load."""
        return max(self._wanted.values(), default=0)

    def settle(self, demands: Iterable[JobDemand], outlooks: Mapping[str, Outlook], serving: int, now_s: float) -> int:
        """Looks at all batches of the model anew; `wanted` afterwards.

        Args:
            demands: The batches.
            outlooks: By batch.
            serving: Replicas that harvest now, those that were started for deadlines among them.
            now_s: Now, in seconds since the epoch.
        """
        replicas = max(1, serving - self.wanted)
        known, self._wanted = self._wanted, {}
        for demand in demands:
            outlook = outlooks.get(demand.batch_id)
            left_s = demand.expires_at - now_s
            if not demand.promised or left_s <= 0 or outlook is None:
                continue
            missing = min(self.most, find_missing_replicas(outlook.laxity_s, left_s, replicas))
            if count := max(missing, known.get(demand.batch_id, 0)):
                self._wanted[demand.batch_id] = count
        return self.wanted
