"""The cluster-wide loop: reads all capacity reports and all batches, writes an allotment for every replica.

Killed and started anew, it goes on from what is in Redis: windows and places of batches are in the allotments, and what
tenants are ahead or behind of each other is kept every two seconds, with what was charged until then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import structlog
from redis.exceptions import RedisError

from conserve.config import HarvestSettings, TenantSettings
from conserve.harvest.board import BoardReading, CapacityBoard
from conserve.harvest.messages import SCHEMA_VERSION, ControllerRecord, ReplicaLine
from conserve.jobs.batch import ActiveBatch, BatchStatus
from conserve.jobs.queue import JobQueue
from conserve.policy.allotment import Allotment, Placement, allot, pass_over_stopped
from conserve.policy.fair_shares import FairShares, JobUse
from conserve.policy.ordering import JobDemand, list_late
from conserve.policy.window import WindowRule
from conserve.telemetry.job_metrics import CONTROLLER_ROUND
from conserve.telemetry.metric import NO_RECORDER, Recorder

log = structlog.get_logger(__name__)

MAX_BACKOFF_S = 5.0
SILENT_PART: Final = 0.5
"""Of the time after which a report is gone: a replica that was silent for so long gets no work of others."""
RECORD_PERIOD_MS: Final = 2_000


class TickTimes(NamedTuple):
    """Where the time of a round went, in ms, and how many allotments were written: the others are there already."""

    reports_ms: float = 0.0
    batches_ms: float = 0.0
    decision_ms: float = 0.0
    writing_ms: float = 0.0
    written: int = 0

    @property
    def whole_ms(self) -> float:
        """All of it."""
        return self.reports_ms + self.batches_ms + self.decision_ms + self.writing_ms


def rule_of(settings: HarvestSettings) -> WindowRule:
    """The window rule that the settings ask for; with harvesting off its window is always shut."""
    return WindowRule(
        max_window=settings.max_window if settings.enabled else 0,
        shut_at_online_requests=settings.shut_at_online_requests,
        open_at_online_requests=settings.open_at_online_requests,
        shut_at_kv_usage=settings.shut_at_kv_usage,
        open_at_kv_usage=settings.open_at_kv_usage,
        deadline_floor=settings.deadline_floor,
        slo_attainment=settings.slo_attainment,
    )


def weights_of(tenants: Mapping[str, TenantSettings]) -> dict[str, float]:
    """The weights that the settings give to tenants."""
    return {name: tenant.weight for name, tenant in tenants.items()}


def demands_of(batches: Sequence[ActiveBatch], urgencies: Mapping[str, float] | None = None) -> list[JobDemand]:
    """The batches that have work to give; those that are not on track have their urgency, by id."""
    urgencies = urgencies or {}
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
            urgency=urgencies.get(batch.batch_id, 0.0),
            promised=batch.promised,
        )
        for batch in batches
        if batch.status is BatchStatus.IN_PROGRESS and not batch.paused and batch.model is not None
    ]


def uses_of(batches: Sequence[ActiveBatch]) -> dict[str, JobUse]:
    """Tokens that each batch has used, or is expected to use for what runs of it."""
    return {
        batch.batch_id: JobUse(
            batch.tenant,
            batch.model,
            batch.tokens_used + batch.leased * batch.request_tokens if batch.leased else batch.tokens_used,
            batch.leased,
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
        recorder: takes measurements.
    """

    def __init__(
        self,
        board: CapacityBoard,
        queue: JobQueue,
        settings: HarvestSettings,
        weights: Mapping[str, float] | None = None,
        find_urgencies: Callable[[], Mapping[str, float]] = dict,
        recorder: Recorder = NO_RECORDER,
    ) -> None:
        self._board = board
        self._queue = queue
        self._rule = rule_of(settings)
        self._period_s = settings.report_period_ms / 1000
        self._find_urgencies = find_urgencies
        self._recorder = recorder
        self._windows: dict[str, int] = {}
        self._silent_ms = round(SILENT_PART * settings.allotment_ttl_ms)
        self._shares = FairShares(weights)
        self._placement = Placement()
        self._is_restored = False
        self._recorded_ms = 0
        self.latest = TickTimes()
        """How long the latest round has taken."""

    async def step(self) -> dict[str, Allotment]:
        """One round: reports and batches in, allotments out.

        Raises:
            RedisError: Redis does not answer; the replicas go by their last allotment, then alone.
        """
        began_s = time.perf_counter()
        # The server reads the batches while what it has said of the replicas is taken in here.
        of_batches = asyncio.create_task(self._queue.active_summaries())
        try:
            reading = await self._board.read()
            reports_s = time.perf_counter()
            batches = await of_batches
        finally:
            of_batches.cancel()
            await asyncio.gather(of_batches, return_exceptions=True)
        if not self._is_restored:
            await self._restore(reading.replicas)
        batches_s = time.perf_counter()
        allotments = self._decide(reading, batches)
        decided_s = time.perf_counter()
        written = await self._board.publish_allotments(allotments, reading.now_ms)
        if not self._recorded_ms <= reading.now_ms < self._recorded_ms + RECORD_PERIOD_MS:
            await self._board.write_record(
                ControllerRecord(at_ms=reading.now_ms, schema_version=SCHEMA_VERSION, shares=self._shares.record())
            )
            self._recorded_ms = reading.now_ms
        ended_s = time.perf_counter()
        self.latest = TickTimes(
            1e3 * (reports_s - began_s),
            1e3 * (batches_s - reports_s),
            1e3 * (decided_s - batches_s),
            1e3 * (ended_s - decided_s),
            written,
        )
        self._recorder.observe(CONTROLLER_ROUND, self.latest.whole_ms / 1e3)
        return allotments

    def _decide(self, reading: BoardReading, batches: Sequence[ActiveBatch]) -> dict[str, Allotment]:
        capacities = [line.to_capacity(reading.now_ms, self._silent_ms) for line in reading.replicas]
        demands = pass_over_stopped(demands_of(batches, self._find_urgencies()), capacities)
        self._shares.settle(demands, uses_of(batches))
        late = list_late(demands)
        allotments = allot(capacities, self._shares, self._rule, self._windows, late, self._placement)
        self._windows = {replica_id: allotment.window for replica_id, allotment in allotments.items()}
        return allotments

    async def _restore(self, replicas: Sequence[ReplicaLine]) -> None:
        """Goes on from where the last controller has stopped."""
        self._shares.restore((await self._board.read_record()).shares)
        allotments = await self._board.read_allotments([line.replica_id for line in replicas])
        self._windows = {replica_id: allotment.window for replica_id, allotment in allotments.items()}
        for model in {line.model for line in replicas}:
            own = {line.replica_id for line in replicas if line.model == model}
            self._placement.restore({name: one for name, one in allotments.items() if name in own}, model)
        self._is_restored = True

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
