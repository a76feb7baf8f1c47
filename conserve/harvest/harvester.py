"""What works off a replica's allotment: claims leases, feeds the engine, commits results, renews, gives back.

Redis away: nothing new is claimed, what runs goes on, results wait for their commit. Controller away: the replica goes
by its own rule.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, Protocol

import structlog
from redis.exceptions import RedisError

from conserve.config import Settings
from conserve.engine.contract import EngineFault, EngineStats, OfflineResult
from conserve.harvest.allotment_source import AllotmentSource
from conserve.harvest.board import CapacityBoard
from conserve.harvest.held_work import HeldWork
from conserve.harvest.messages import CapacityReport
from conserve.jobs.batch import Batch, ClaimedRequest
from conserve.jobs.files import FileStore
from conserve.jobs.queue import JobQueue
from conserve.jobs.results import FinishedRequest, ResultWriter, format_error, format_output
from conserve.policy.allotment import ReplicaState

log = structlog.get_logger(__name__)

LONGEST_RENEWAL_PERIOD_S = 2.0
"""A cancelled batch is noticed when its leases are renewed."""
FAULT_PAUSE_S = 1.0
LONGEST_FAULT_PAUSE_S = 30.0
RETRY_S = 0.5
STOP_TIMEOUT_S = 5.0
STOPPED = "the replica was stopped"
MAX_UNCOMMITTED = 1_000
"""Finished requests that wait for Redis; with more of them nothing is claimed."""


class OfflineEngine(Protocol):
    """The part of `conserve.engine.engine.CoServeEngine` that harvesting needs."""

    async def offline(self, endpoint: str, body: Mapping[str, Any], timeout_s: float) -> OfflineResult:
        """Runs one request. Raises EngineFault when another attempt may succeed."""

    def stats(self) -> EngineStats:
        """What the engine is doing now."""


class Harvester:
    """Harvests on one replica.

    Args:
        engine: runs the requests.
        queue, store, board: Redis and the files.
        settings: ConServe's settings.
        replica_id: this replica's name in reports.
        model: the served model; only its batches are worked on.
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
    ) -> None:
        self._engine = engine
        self._queue = queue
        self._store = store
        self._board = board
        self._settings = settings
        self._jobs = settings.jobs
        self._replica_id = replica_id
        self._model = model
        self._epoch = secrets.token_hex(8)
        self._writer = ResultWriter(queue, store, self._epoch)
        self._source = AllotmentSource(board, queue, settings.harvest, replica_id)
        self._held = HeldWork()
        self._batches: dict[str, Batch] = {}
        self._wake = asyncio.Event()
        self._state: ReplicaState = "serving"
        self._fault_pause_s = FAULT_PAUSE_S
        self._claim_from_s = 0.0
        self._claiming: asyncio.Future[list[ClaimedRequest]] | None = None

    async def run(self) -> None:
        """Harvests until cancelled; then call `drain`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat("report", self._settings.harvest.report_period_ms / 1000, self._report))
            group.create_task(self._repeat("renew", self._renewal_period_s, self._renew))
            group.create_task(self._repeat("commit", self._jobs.commit_period_ms / 1000, self._commit))
            group.create_task(self._claim_forever())

    async def drain(self) -> None:
        """Claims nothing more, commits what is finished and gives the rest back, not counted as an attempt.

        What cannot be given back because Redis is away is freed when its lease runs out.
        """
        self._state = "draining"
        tasks = [task for batch_id in self._held.batch_ids() for task in self._cancel_running(batch_id)]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)
        try:
            await self._commit()
            for batch_id in self._held.batch_ids():
                fences = self._held.fences(batch_id)
                await self._queue.release(batch_id, fences, count_attempt=False, reason=STOPPED)
                self._held.drop(batch_id, fences)
            if self._claiming is not None:
                for claimed in await asyncio.wait_for(self._claiming, STOP_TIMEOUT_S):
                    fences = {claimed.line: claimed.fence}
                    await self._queue.release(claimed.batch_id, fences, count_attempt=False, reason=STOPPED)
            await self._board.remove_report(self._replica_id)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("leases not given back; they will run out", error=str(error))

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
        report = CapacityReport(
            replica_id=self._replica_id,
            model=self._model,
            state=self._state,
            window=self._source.allotment.window,
            alone=self._source.alone,
            **dataclasses.asdict(self._engine.stats()),
        )
        try:
            await self._board.publish_report(report)
        finally:
            # Also without Redis: the window then follows the replica's own load.
            await self._source.refresh(report.to_capacity())
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
        if time.monotonic() < self._claim_from_s or self._writer.pending_count > MAX_UNCOMMITTED:
            return
        for batch_id in self._source.allotment.batch_ids:
            room = self._source.allotment.window - self._held.running_count
            if room <= 0:
                return
            batch = await self._find_batch(batch_id)
            if batch is None:
                continue
            claimed = await self._claim(batch_id, room)
            for request in claimed:
                task = asyncio.create_task(self._run(request, batch))
                self._held.add(request, task)
            if len(claimed) < room:
                self._source.mark_empty(batch_id)

    async def _claim(self, batch_id: str, room: int) -> list[ClaimedRequest]:
        # Cancelled in flight, the claim may have happened all the same: `drain` waits for it and gives it back.
        self._claiming = asyncio.ensure_future(self._queue.claim(batch_id, room, self._jobs.lease_ms, self._epoch))
        claimed = await asyncio.shield(self._claiming)
        self._claiming = None
        return claimed

    async def _find_batch(self, batch_id: str) -> Batch | None:
        batch = self._batches.get(batch_id)
        if batch is None:
            batch = await self._queue.get(batch_id)
            if batch is None or (batch.model or self._model) != self._model:
                self._source.mark_empty(batch_id)
                return None
            if len(self._batches) >= self._jobs.max_active_batches:
                self._batches.clear()
            self._batches[batch_id] = batch
        return batch

    async def _run(self, claimed: ClaimedRequest, batch: Batch) -> None:
        try:
            finished = await self._attempt(claimed, batch)
        except EngineFault as fault:
            log.warning("offline request failed", batch_id=claimed.batch_id, line=claimed.line, reason=str(fault))
            await self._give_back(claimed, str(fault), count_attempt=True)
        except (OSError, EOFError) as error:
            # The storage is away: the request itself has not been tried.
            log.warning("input of an offline request not readable", batch_id=claimed.batch_id, error=str(error))
            await self._give_back(claimed, f"its input could not be read: {error}", count_attempt=False)
        except Exception as error:
            # Whatever it is, the request must not stay leased to a task that has ended.
            log.exception("offline request failed", batch_id=claimed.batch_id, line=claimed.line)
            await self._give_back(claimed, f"{type(error).__name__}: {error}", count_attempt=True)
        else:
            self._fault_pause_s = FAULT_PAUSE_S
            self._writer.add(finished)
            self._held.finish(claimed)
        self._wake.set()

    async def _attempt(self, claimed: ClaimedRequest, batch: Batch) -> FinishedRequest:
        raw = await self._store.read_range(batch.input_file_id, claimed.offset, claimed.length)
        # Validation has seen to it that the line is an object with a `custom_id` and a `body`.
        request = json.loads(raw)
        place = (claimed.batch_id, claimed.line, str(request["custom_id"]))
        result = await self._engine.offline(batch.endpoint, request["body"], self._jobs.request_timeout_s)
        request_id = str(result.body.get("id") or f"req-{claimed.batch_id}-{claimed.line}")
        try:
            content = format_output(*place, result.status_code, request_id, result.body)
        except ValueError as error:
            content = format_error(*place, "unserializable_response", f"The answer is no JSON: {error}")
            return FinishedRequest(claimed.batch_id, claimed.line, claimed.fence, "error", content)
        return FinishedRequest(
            batch_id=claimed.batch_id,
            line=claimed.line,
            fence=claimed.fence,
            kind="output" if result.status_code == 200 else "error",
            content=content,
            prompt_tokens=result.prompt_tokens,
            completion_tokens=result.output_tokens,
        )

    async def _give_back(self, claimed: ClaimedRequest, reason: str, *, count_attempt: bool) -> None:
        now_s = time.monotonic()
        if now_s >= self._claim_from_s:  # Several requests that fail together are one incident.
            self._claim_from_s = now_s + self._fault_pause_s
            self._fault_pause_s = min(2 * self._fault_pause_s, LONGEST_FAULT_PAUSE_S)
        fences = {claimed.line: claimed.fence}
        self._held.drop(claimed.batch_id, fences)
        try:
            await self._queue.release(claimed.batch_id, fences, count_attempt=count_attempt, reason=reason)
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
        self._batches.pop(batch_id, None)
        await self._commit()
        if fences:
            await self._queue.release(batch_id, fences, count_attempt=False, reason="the batch was cancelled")

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
