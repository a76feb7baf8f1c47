"""Watches capacity and deadlines: what could be harvested, when batches will end, and which of them will be late.

It decides nothing by itself: the controller asks it how urgent batches are, and clients see the predicted ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

import structlog
from redis.exceptions import RedisError

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.capacity_recorder import CapacityRecorder
from conserve.harvest.controller import demands_of, weights_of
from conserve.harvest.queue_metrics import QueueMetrics
from conserve.jobs.admission import find_batch_tokens_left
from conserve.jobs.batch import ActiveBatch
from conserve.jobs.capacity_store import CapacityStore
from conserve.jobs.queue import JobQueue
from conserve.policy.admission import Capacity
from conserve.policy.capacity import LEAST_HISTORY_S, CapacityHistory, SteadyCapacity
from conserve.policy.deadline_scaling import DeadlineScaling
from conserve.policy.forecast import PromisedCapacity
from conserve.policy.laxity import LEAST_URGENCY, Outlook, WorkLeft, look_ahead
from conserve.policy.ordering import JobDemand, list_late, order_jobs
from conserve.telemetry.metric import NO_RECORDER, Recorder

log = structlog.get_logger(__name__)

PERIOD_S: Final = 3.0
EXPECTED: Final = 0.5
"""Predictions are as often too early as too late; promises are made from `jobs.forecast_quantile`."""
_LEAST_SEEN_S: Final = 60.0
_SAME_MS: Final = 1_000


class DeadlineWatch:
    """Watches over all models and batches.

    Args:
        board: Has the reports.
        queue: Has the batches.
        store: Has the history.
        settings: ConServe's settings.
        models: The served ones.
        recorder: Takes measurements.
    """

    def __init__(
        self,
        board: CapacityBoard,
        queue: JobQueue,
        store: CapacityStore,
        settings: Settings,
        models: Sequence[str],
        recorder: Recorder = NO_RECORDER,
    ) -> None:
        self._board = board
        self._queue = queue
        self._store = store
        self._floor = settings.harvest.deadline_floor
        self._horizon_s = settings.jobs.max_window_s
        self._weights = weights_of(settings.tenants)
        tbt_slo_ms = settings.slo.tbt_slo_ms
        self._recorders = {model: CapacityRecorder(store, model, tbt_slo_ms, recorder) for model in models}
        most = settings.harvest.scale_for_deadlines
        self._scalings = {model: DeadlineScaling(most) for model in models if most > 0}
        self._urgencies: dict[str, float] = {}
        self._written: dict[str, int | None] = {}
        self._warned: set[str] = set()
        self._metrics = QueueMetrics(recorder, settings.tenants, models)

    @property
    def urgencies(self) -> Mapping[str, float]:
        """How urgent batches are, by id, from 0 to 1; none that is not there is."""
        return self._urgencies

    async def step(self) -> dict[str, Outlook]:
        """One round.

        Raises:
            RedisError: Redis does not answer. What is harvested meanwhile is counted afterwards.
        """
        reports = await self._board.read_reports()
        # Flex requests were promised nothing; nobody asks when they end.
        active = await self._queue.active_summaries()
        batches = [batch for batch in active if batch.flex is None]
        now_ms = await self._store.read_now_ms()
        demands = demands_of(batches, self._urgencies)
        outlooks: dict[str, Outlook] = {}
        for model, recorder in self._recorders.items():
            await recorder.load()
            own = [demand for demand in demands if demand.model == model]
            has_work = any(demand.ready > 0 for demand in own)
            recorder.observe((one for one in reports if one.model == model), now_ms, has_work=has_work)
            await recorder.flush()
            capacity = self._expect(recorder.history, now_ms / 1000)
            if own and capacity is not None:
                works, first = _list_work(batches, own)
                outlooks |= look_ahead(works, capacity, now_ms / 1000, self._weights, first)
            if model in self._scalings:
                serving = sum(one.model == model and one.state == "serving" for one in reports)
                wanted = self._scalings[model].settle(own, outlooks, serving, now_ms / 1000)
                await self._board.publish_extra_replicas(model, wanted)
        self._urgencies = {batch_id: outlook.urgency for batch_id, outlook in outlooks.items() if outlook.urgency > 0}
        await self._write([demand.batch_id for demand in demands], outlooks)
        self._warn(outlooks)
        self._metrics.report(active, outlooks, reports, now_ms)
        return outlooks

    async def run(self, period_s: float = PERIOD_S) -> NoReturn:
        """Rounds until cancelled. An outage of Redis is waited out."""
        while True:
            try:
                await self.step()
            except (RedisError, OSError) as error:
                log.warning("deadlines cannot be watched without Redis", error=str(error))
            await asyncio.sleep(period_s)

    def _expect(self, history: CapacityHistory, now_s: float) -> Capacity | None:
        """The capacity that is to be expected; None where next to nothing was seen."""
        if history.seen_s >= LEAST_HISTORY_S:
            return PromisedCapacity(history, now_s, self._horizon_s, EXPECTED)
        if history.seen_s < _LEAST_SEEN_S:
            return None
        rate = sum(tokens for tokens, _ in history.intervals.values()) / history.seen_s
        return SteadyCapacity(rate, now_s) if rate > 0 else None

    async def _write(self, batch_ids: Sequence[str], outlooks: Mapping[str, Outlook]) -> None:
        ends_ms = {batch_id: _find_end_ms(outlooks.get(batch_id)) for batch_id in batch_ids}
        changed = {one: end_ms for one, end_ms in ends_ms.items() if self._is_news(one, end_ms)}
        if changed:
            await self._queue.predict(changed)
        self._written = {one: changed.get(one, self._written.get(one)) for one in batch_ids}

    def _is_news(self, batch_id: str, end_ms: int | None) -> bool:
        known_ms = self._written.get(batch_id)
        if end_ms is None or known_ms is None:
            return end_ms != known_ms or batch_id not in self._written
        return abs(end_ms - known_ms) >= _SAME_MS

    def _warn(self, outlooks: Mapping[str, Outlook]) -> None:
        late = {batch_id for batch_id, outlook in outlooks.items() if outlook.laxity_s < 0}
        for batch_id in sorted(late - self._warned):
            help_ = (
                f"up to {self._floor:.0%} of the window is open to it" if self._floor else "harvest.deadline_floor is 0"
            )
            log.warning("a batch will be late", batch_id=batch_id, by_s=-outlooks[batch_id].laxity_s, floor=help_)
        self._warned = late


def _list_work(batches: Sequence[ActiveBatch], demands: Sequence[JobDemand]) -> tuple[list[WorkLeft], frozenset[str]]:
    """What is left of batches, in the order in which they go now, and which of them go before all tenants' turns."""
    by_id = {batch.batch_id: batch for batch in batches}
    # One with the least urgency has a place or so; it goes on in its turn.
    late = [demand for demand in list_late(demands) if demand.urgency > LEAST_URGENCY]
    ordered = [*late, *(demand for demand in order_jobs(demands) if demand.urgency <= LEAST_URGENCY)]
    works = [
        WorkLeft(
            demand.batch_id,
            demand.expires_at,
            find_batch_tokens_left(by_id[demand.batch_id]),
            demand.tenant,
            demand.promised,
        )
        for demand in ordered
    ]
    return works, frozenset(demand.batch_id for demand in late if demand.promised)


def _find_end_ms(outlook: Outlook | None) -> int | None:
    return None if outlook is None or outlook.end_s is None else round(outlook.end_s * 1000)
