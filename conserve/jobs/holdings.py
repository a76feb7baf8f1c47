"""Keeps what active batches have of their tenants' quotas in step with what is left of them to do."""

from __future__ import annotations

from collections.abc import Sequence

from conserve.jobs.batch import ActiveBatch
from conserve.jobs.ledger import Holding, Ledger


class BatchHoldings:
    """Writes amounts that have changed. More than one at a time does no harm: amounts are set, not added."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._written: dict[str, Holding] = {}

    def reset(self) -> None:
        """Forgets what was written: Redis may have been taken back to an older state. All is written anew."""
        self._written = {}

    async def follow(self, batches: Sequence[ActiveBatch]) -> None:
        """Takes the active batches; those whose lines are not known yet have what they were accepted with.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        found = {batch.batch_id: (batch.tenant, holding_of(batch)) for batch in batches if batch.total}
        changed = {one: pair for one, pair in found.items() if self._written.get(one) != pair[1]}
        await self._ledger.adjust(changed)
        self._written = {batch_id: holding for batch_id, (_, holding) in found.items()}


def holding_of(batch: ActiveBatch) -> Holding:
    """Requests of a batch that are not done, the tokens that they are expected to take, and the batch itself."""
    is_over = batch.outcome is not None or batch.status.ended
    left = 0 if is_over else max(0, batch.total - batch.completed - batch.failed)
    is_flex = batch.flex is not None
    return Holding(
        requests=left,
        tokens=round(left * batch.request_tokens),
        batches=int(not is_flex),
        flex=int(is_flex and batch.let_go_at_ms is None),
    )
