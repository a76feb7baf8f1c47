"""What works off a replica's allotment: claims leases, feeds the engine, commits results, renews, gives back.

Redis away: nothing new is claimed, what runs goes on, results wait for their commit. Controller away: the replica goes
by its own rule.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog
from redis.exceptions import RedisError

from conserve.config import Settings
from conserve.engine.contract import TokenRecord
from conserve.harvest.allotment_source import AllotmentSource
from conserve.harvest.attempt import AttemptRunner, Fault, OfflineEngine, find_fault
from conserve.harvest.attempt_trace import AttemptTrace
from conserve.harvest.board import CapacityBoard
from conserve.harvest.capacity_meter import CapacityMeter
from conserve.harvest.claimer import Claimer
from conserve.harvest.controller import weights_of
from conserve.harvest.crowding import Crowding
from conserve.harvest.harvester_metrics import HarvesterMetrics
from conserve.harvest.held_work import HeldWork
from conserve.harvest.journaling import REST_S, Journaling
from conserve.harvest.messages import CapacityReport
from conserve.harvest.recent_latency import RecentLatency
from conserve.harvest.replica_text import ReplicaDiary
from conserve.jobs.batch import Batch
from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from conserve.jobs.results import ResultWriter
from conserve.policy.allotment import JobShare
from conserve.policy.fault_pause import FaultPauses
from conserve.policy.replica_capacity import ReplicaState
from conserve.policy.retry import FaultKind
from conserve.telemetry.metric import NO_RECORDER, Recorder

log = structlog.get_logger(__name__)

LONGEST_RENEWAL_PERIOD_S = 2.0
"""A cancelled batch is noticed when its leases are renewed."""
FAULT_PAUSE_S = 1.0
LONGEST_FAULT_PAUSE_S = 30.0
RETRY_S = 0.5
STREAM_PERIOD_S = 0.05
"""Chunks of streamed requests are gathered for so long."""
STOP_TIMEOUT_S = 5.0
MAX_UNCOMMITTED = 1_000
"""Finished requests that wait for Redis; with more of them nothing is claimed."""


class Harvester:
    """Harvests on one replica.

    Args:
        engine: runs the requests.
        queue, store, board: Redis and the files.
        settings: ConServe's settings.
        replica_id: this replica's name in reports.
        model: the served model; only its batches are worked on.
        revision: of that model as it is served here: requests go on on no other one. None: nothing is journaled.
        recorder: takes measurements.
        latency: what online requests feel here, for the reports.
    """

    def __init__(
        self,
        engine: OfflineEngine,
        queue: JobQueue,
        store: FileStore,
        board: CapacityBoard,
        settings: Settings,
        replica_id: str,
        model: str,
        revision: str | None = None,
        recorder: Recorder = NO_RECORDER,
        latency: RecentLatency | None = None,
    ) -> None:
        self._engine = engine
        self._queue = queue
        self._board = board
        self._settings = settings
        self._jobs = settings.jobs
        self._replica_id = replica_id
        self._model = model
        self._epoch = secrets.token_hex(8)
        self._chunks = queue.make_chunk_writer()
        self._runner = AttemptRunner(engine, store, settings.jobs.request_timeout_s, self._chunks)
        self._writer = ResultWriter(queue, store, self._epoch)
        self._source = AllotmentSource(board, queue, settings.harvest, replica_id, weights=weights_of(settings.tenants))
        self._held = HeldWork()
        self._journaling = Journaling(queue, self._held, settings.jobs, revision)
        self._claimer = Claimer(queue, settings.jobs, model, self._epoch)
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._state: ReplicaState = "serving"
        self._pauses = FaultPauses(FAULT_PAUSE_S, LONGEST_FAULT_PAUSE_S)
        self._crowding = Crowding(engine)
        self._metrics = HarvesterMetrics(recorder)
        self._diary = ReplicaDiary()
        self._latency = latency or RecentLatency()
        self._meter = CapacityMeter(settings.slo.tbt_slo_ms, settings.engine.max_num_seqs)

    async def run(self) -> None:
        """Harvests until cancelled; then call `drain`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat("report", self._settings.harvest.report_period_ms / 1000, self._report))
            group.create_task(self._repeat("renew", self._renewal_period_s, self._renew))
            group.create_task(self._repeat("commit", self._jobs.commit_period_ms / 1000, self._commit))
            group.create_task(self._repeat("stream", STREAM_PERIOD_S, self._chunks.flush))
            group.create_task(self._repeat("journal", REST_S, self._journaling.step))
            group.create_task(self._claim_forever())

    async def leave(self, limit_s: float, *, ended_s: float = 0.0) -> None:
        """From now on claims nothing and reports `draining`; gives back what it holds, as `drain`, while `run` goes on.

        Args:
            limit_s: What could not be given back by then is freed when its lease runs out.
            ended_s: So long requests may end by themselves, before they are stopped: those of an engine that has died
                say what they have failed of.
        """
        self._state = "draining"
        try:
            async with asyncio.timeout(limit_s):
                if ended_s and (tasks := self._list_running()):
                    await asyncio.wait(tasks, timeout=ended_s)
                while not await self._hand_back():  # noqa: ASYNC110 - Redis says nothing when it is back
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            log.warning("not all leases were given back in time; they will run out", limit_s=limit_s)

    async def drain(self) -> None:
        """Claims nothing more, commits what is finished, journals the rest and gives it back; no attempt is counted.

        What cannot be given back because Redis is away is freed when its lease runs out. No report is left.
        """
        self._state = "draining"
        if not await self._hand_back():
            return
        try:
            await self._board.remove_report(self._replica_id)
        except (RedisError, OSError) as error:
            log.warning("the report of a replica that left will expire", error=str(error))

    async def _hand_back(self) -> bool:
        tasks = self._list_running()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)
        await self._journaling.flush()
        try:
            await self._commit()
            for batch_id in self._held.batch_ids():
                fences = self._held.fences(batch_id)
                await self._queue.release(batch_id, fences)
                self._held.drop(batch_id, fences)
            await self._claimer.release_unknown(STOP_TIMEOUT_S)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("leases not given back; they will run out", error=str(error))
            return False
        return True

    def _list_running(self) -> list[asyncio.Task[None]]:
        return [task for batch_id in self._held.batch_ids() for task in self._held.running_tasks(batch_id)]

    @property
    def _renewal_period_s(self) -> float:
        return min(self._jobs.lease_ms / 3000, LONGEST_RENEWAL_PERIOD_S)

    async def _repeat(self, name: str, period_s: float, step: Callable[[], Awaitable[None]]) -> NoReturn:
        while True:
            try:
                await step()
            except (RedisError, OSError) as error:
                log.warning("harvester cannot use redis", step=name, error=str(error))
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(period_s)

    async def _report(self) -> None:
        stats = self._engine.stats()
        report = CapacityReport(
            replica_id=self._replica_id,
            model=self._model,
            state=self._state,
            window=self._source.allotment.window,
            alone=self._source.alone,
            stopped=tuple(self._pauses.list_stopped(time.monotonic())),
            **dataclasses.asdict(stats),
            **self._meter.measure(stats, time.monotonic()),
            **self._latency.measure(time.monotonic()),
            **dataclasses.asdict(self._journaling.counts),
        )
        self._metrics.report(report)
        self._diary.note(report, time.monotonic())
        try:
            await self._board.publish_report(report)
        finally:
            # Also without Redis: the window then follows the replica's own load.
            try:
                await self._source.refresh(report.to_capacity())
            finally:
                self._crowding.note(self._source.allotment.window)
                self._grant_floor()
            self._wake.set()

    async def _claim_forever(self) -> NoReturn:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._fill_window()
            except (RedisError, OSError) as error:
                log.warning("harvester cannot claim", error=str(error))
                await asyncio.sleep(RETRY_S)

    async def _fill_window(self) -> None:
        now_s = time.monotonic()
        if self._state == "draining":
            return
        if self._pauses.stops_all(now_s) or self._writer.pending_count > MAX_UNCOMMITTED:
            return
        if self._held.has_alone:
            return
        for share in self._source.allotment.late:
            room = 0 if self._pauses.stops(share.batch_id, now_s) else self._find_room_of_late(share)
            if room > 0 and await self._take(share.batch_id, room) is None:
                return
        while (turn := self._source.turn) is not None:
            if self._pauses.stops(turn.batch_id, now_s):
                self._source.mark_empty(turn.batch_id)
                continue
            room = self._limit(turn.batch_id, min(self._source.allotment.window - self._held.running_count, turn.most))
            if room <= 0:
                return
            taken = await self._take(turn.batch_id, room)
            if taken is None:
                return
            self._source.mark_taken(turn.batch_id, taken)

    async def _take(self, batch_id: str, room: int) -> int | None:
        """Begins up to so many requests of a batch; how many. None: no other may begin beside one of them."""
        batch = await self._claimer.find_batch(batch_id)
        if batch is None:
            self._source.mark_empty(batch_id)
            return 0
        claimed = await self._claimer.claim(batch_id, room)
        if self._state == "draining":  # Since it was asked.
            await self._queue.release(batch_id, {one.line: one.fence for one in claimed})
            return None
        for request in claimed:
            record = self._journaling.open(request)
            trace = AttemptTrace(request, batch, self._model)
            task = asyncio.create_task(self._run(request, batch, record, trace))
            self._held.add(request, task, record)
        if any(request.alone for request in claimed):
            return None
        if len(claimed) < room:
            self._source.mark_empty(batch_id)
        return len(claimed)

    def _find_room_of_late(self, share: JobShare) -> int:
        """Requests of a late batch that may be claimed now, also on the floor."""
        allotment = self._source.allotment
        room = min(
            share.most - len(self._held.running_lines(share.batch_id)),
            max(allotment.window, allotment.floor) - self._held.running_count,
        )
        return self._limit(share.batch_id, room)

    def _limit(self, batch_id: str, room: int) -> int:
        """How many of so many requests of a batch fit into the tokens that may be in flight."""
        return self._source.limit_by_tokens(batch_id, room, self._held.count_running())

    def _grant_floor(self) -> None:
        """While a batch is late and requests run here, the engine gives them what the operator grants."""
        self._engine.grant_floor(self._source.allotment.floor_share if self._held.running_count else 0.0)

    async def _run(
        self, claimed: ClaimedRequest, batch: Batch, record: TokenRecord | None, trace: AttemptTrace
    ) -> None:
        begun = self._crowding.latest
        try:
            if claimed.alone:
                if not await self._begin_alone(claimed):
                    self._held.drop(claimed.batch_id, {claimed.line: claimed.fence})
                    return
                begun = self._crowding.latest
            finished = await self._runner.run(claimed, batch, record)
        except Exception as error:
            # Whatever it is, the request must not stay leased to a task that has ended.
            fault = self._crowding.excuse(find_fault(error), begun)
            foreseen = fault.kind is not FaultKind.REPLICA_FAULT
            log.warning(
                "offline request failed",
                batch_id=claimed.batch_id,
                line=claimed.line,
                kind=fault.kind,
                reason=fault.reason,
                exc_info=None if foreseen else error,
            )
            self._metrics.count_fault(fault.kind)
            trace.fail(fault)
            await self._give_back(claimed, fault)
        else:
            self._metrics.count_result(finished.kind)
            trace.finish(finished, record)
            self._pauses.succeed(claimed.batch_id)
            self._writer.add(finished)
            self._held.finish(claimed)
        finally:
            trace.end()
            self._journaling.count(claimed, record)
            self._ended.set()
            self._wake.set()

    async def _begin_alone(self, claimed: ClaimedRequest) -> bool:
        """Waits until no other offline request runs here; nothing is claimed meanwhile."""
        log.info("offline request waits to run alone", batch_id=claimed.batch_id, line=claimed.line)
        while self._held.running_count > 1:
            self._ended.clear()
            await self._ended.wait()
        return await self._queue.begin(claimed)

    async def _give_back(self, claimed: ClaimedRequest, fault: Fault) -> None:
        if fault.needs_pause:
            self._pauses.fail(claimed.batch_id, time.monotonic(), engine_ended=fault.engine_ended)
        fences = {claimed.line: claimed.fence}
        await self._journaling.flush()
        self._held.drop(claimed.batch_id, fences)
        try:
            if fault.kind is None:
                await self._queue.release(claimed.batch_id, fences)
            else:
                await self._queue.retry(claimed, fault.kind, fault.reason)
        except (RedisError, OSError) as error:
            log.warning("lease not given back; it will run out", line=claimed.line, error=str(error))

    async def _renew(self) -> None:
        for batch_id in self._held.batch_ids():
            fences = self._held.fences(batch_id)
            renewed = await self._queue.renew(batch_id, fences, self._jobs.lease_ms)
            if renewed.lost:
                log.info("leases lost", batch_id=batch_id, lines=sorted(renewed.lost))
                for task in self._held.drop(batch_id, {line: fences[line] for line in renewed.lost}):
                    task.cancel()
            if renewed.cancelled:
                await self._stop_batch(batch_id)

    async def _stop_batch(self, batch_id: str) -> None:
        running = self._held.running_lines(batch_id)
        fences = {line: fence for line, fence in self._held.fences(batch_id).items() if line in running}
        self._cancel_running(batch_id)
        self._held.drop(batch_id, fences)
        self._claimer.forget(batch_id)
        await self._commit()
        if fences:
            await self._queue.release(batch_id, fences)

    def _cancel_running(self, batch_id: str) -> list[asyncio.Task[None]]:
        tasks = self._held.running_tasks(batch_id)
        for task in tasks:
            task.cancel()
        return tasks

    async def _commit(self) -> None:
        if self._writer.pending_count == 0:
            return
        report = await self._writer.flush()
        for settled in (report.accepted, report.refused):
            for batch_id, lines in settled.items():
                self._held.drop_finished(batch_id, lines)
        for batch_id, lines in report.refused.items():
            log.info("results came too late", batch_id=batch_id, lines=sorted(lines))
