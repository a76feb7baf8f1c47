"""The cluster-wide loop: reads all capacity reports and all batches, writes an allotment for every replica.

It holds no state that matters: killed and started anew, it goes on from what is in Redis. What tenants are ahead or
behind of each other at that moment is forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog
from redis.exceptions import RedisError

from conserve.config import HarvestSettings, TenantSettings
from conserve.harvest.board import CapacityBoard
from conserve.jobs.batch import ActiveBatch, BatchStatus
from conserve.jobs.queue import JobQueue
from conserve.policy.allotment import Allotment, WindowRule, allot, pass_over_stopped
from conserve.policy.fair_shares import FairShares, JobUse
from conserve.policy.ordering import JobDemand, list_late

log = structlog.get_logger(__name__)

MAX_BACKOFF_S = 5.0


def rule_of(settings: HarvestSettings) -> WindowRule:
    """The window rule that the settings ask for; with harvesting off its window is always shut."""
    return WindowRule(
        max_window=settings.max_window if settings.enabled else 0,
        shut_at_online_requests=settings.shut_at_online_requests,
        open_at_online_requests=settings.open_at_online_requests,
        shut_at_kv_usage=settings.shut_at_kv_usage,
        open_at_kv_usage=settings.open_at_kv_usage,
        deadline_floor=settings.deadline_floor,
    )


def weights_of(tenants: Mapping[str, TenantSettings]) -> dict[str, float]:
    """The weights that the settings give to tenants."""
    return {name: tenant.weight for name, tenant in tenants.items()}


def demands_of(batches: Sequence[ActiveBatch], urgencies: Mapping[str, float] | None = None) -> list[JobDemand]:
    """The batches that have work to give; those that are not on track have their urgency, by id."""
    return [
        JobDemand(
            batch_id=batch.batch_id,
            model=batch.model,
            created_at=batch.created_at_ms / 1000,
            expires_at=batch.expires_at_ms / 1000,
            ready=batch.ready,
            priority=batch.priority,
            tenant=batch.tenant,
            request_tokens=batch.request_tokens,
            prefix=batch.prefix,
            urgency=(urgencies or {}).get(batch.batch_id, 0.0),
            promised=batch.promised,
        )
        for batch in batches
        if batch.status is BatchStatus.IN_PROGRESS and not batch.paused and batch.model is not None
    ]


def uses_of(batches: Sequence[ActiveBatch]) -> dict[str, JobUse]:
    """Tokens that each batch has used, or is expected to use for what runs of it."""
    return {
        batch.batch_id: JobUse(
            batch.tenant, batch.model, batch.tokens_used + batch.leased * batch.request_tokens, batch.leased
        )
        for batch in batches
        if batch.model is not None
    }


class HarvestController:
    """Decides which jobs' work goes to which replica and how much of it is in flight there.

    Args:
        board: has the reports, and gets the allotments.
        queue: has the batches.
        settings: how much is harvested.
        weights: of tenants; 1 where it is not said.
        find_urgencies: says how urgent batches are, by id; without it none is.
    """

    def __init__(
        self,
        board: CapacityBoard,
        queue: JobQueue,
        settings: HarvestSettings,
        weights: Mapping[str, float] | None = None,
        find_urgencies: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._board = board
        self._queue = queue
        self._rule = rule_of(settings)
        self._period_s = settings.report_period_ms / 1000
        self._find_urgencies = find_urgencies
        self._windows: dict[str, int] = {}
        self._shares = FairShares(weights)

    async def step(self) -> dict[str, Allotment]:
        """One round: reports and batches in, allotments out.

        Raises:
            RedisError: Redis does not answer; the replicas go by their last allotment, then alone.
        """
        reports = await self._board.read_reports()
        batches = await self._queue.active_summaries()
        capacities = [report.to_capacity() for report in reports]
        demands = pass_over_stopped(demands_of(batches, self._find_urgencies()), capacities)
        self._shares.settle(demands, uses_of(batches))
        allotments = allot(capacities, self._shares, self._rule, self._windows, list_late(demands))
        await self._board.publish_allotments(allotments)
        self._windows = {replica_id: allotment.window for replica_id, allotment in allotments.items()}
        return allotments

    async def run(self) -> None:
        """Rounds until cancelled. An outage of Redis is waited out."""
        backoff_s = self._period_s
        while True:
            try:
                await self.step()
            except (RedisError, OSError) as error:
                log.warning("controller cannot reach Redis", error=str(error), retry_in_s=backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            else:
                backoff_s = self._period_s
                await asyncio.sleep(self._period_s)
