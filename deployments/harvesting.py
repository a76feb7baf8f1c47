"""What a replica does besides answering online requests: it harvests, says how it is, and leaves when it has to."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, NoReturn

import psutil
import structlog
from ray import serve

from conserve.config import Settings
from conserve.harvest.attempt import OfflineEngine
from conserve.harvest.board import CapacityBoard
from conserve.harvest.harvester import Harvester
from conserve.harvest.recent_latency import RecentLatency
from conserve.jobs.files import FileStore
from conserve.jobs.link import OUTAGES, RedisClient, keep_connected
from conserve.jobs.queue import JobQueue
from conserve.telemetry.metric import NO_RECORDER, Recorder
from deployments.departure import Departure

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S: Final = 10.0
LAST_WORDS_S: Final = 2.0
"""So long requests of an engine that has died may take to say so to their clients, and to the queue."""
POLL_S: Final = 0.05
EXTRA_PERIOD_S: Final = 2.0
HOLD_S: Final = 8.0
"""So long a health check is not answered where nothing is wrong; see `HeldChecks`."""


class HeldChecks:
    """Answers the health checks of Serve late, so that one is under way nearly always.

    Serve 2.60 notices that a replica has ended by a check that fails: at once if there is one, otherwise when the next
    is due. Held ones need fewer calls, too. The first check belongs to the start of the replica and is not held.

    Args:
        check: Raises where something is wrong.
        is_wanted: Whether the answer may wait. Also that of a replica which is about to end itself: a check that fails
            by its end tells Serve more than one that is answered just before, after which the next goes to nobody.
        hold_s: So long.
    """

    def __init__(
        self, check: Callable[[], Awaitable[Any]], is_wanted: Callable[[], bool], hold_s: float = HOLD_S
    ) -> None:
        self._check = check
        self._is_wanted = is_wanted
        self._hold_s = hold_s
        self._has_begun = False
        self._under_way = 0

    async def answer(self) -> None:
        """Answers a check.

        Raises:
            Exception: as `check`.
        """
        is_held = self._has_begun and self._under_way == 0
        self._under_way += 1
        try:
            if is_held:
                until_s = time.monotonic() + self._hold_s
                while self._is_wanted() and time.monotonic() < until_s:  # noqa: ASYNC110 - nobody says when either ends
                    await asyncio.sleep(POLL_S)
            await self._check()
            self._has_begun = True
        finally:
            self._under_way -= 1


class ReplicaHarvest:
    """Harvests on a replica, beside its online requests.

    Args:
        engine: Runs the offline requests, and counts the online ones.
        settings: ConServe's settings, with the Redis URL resolved.
        revision: See `Harvester`.
        departure: Whether the replica has to go.
        end: Ends this process.
        recorder: Takes measurements.
        latency: What online requests feel here, for the reports.

    Attributes:
        extra_replicas: So many of its model are wanted beyond those for online load, as the controller has said last.
    """

    def __init__(
        self,
        engine: OfflineEngine,
        settings: Settings,
        revision: str | None,
        departure: Departure,
        end: Callable[[], None] | None = None,
        recorder: Recorder = NO_RECORDER,
        latency: RecentLatency | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._revision = revision
        self._departure = departure
        self._end = end or end_process
        self._recorder = recorder
        self._latency = latency
        self._handed_back = asyncio.Event()
        self.extra_replicas = 0
        self._tasks = [
            asyncio.create_task(departure.watch()),
            asyncio.create_task(keep_connected(settings, self._harvest)),
            asyncio.create_task(self._end_with_engine()),
        ]

    async def stop(self) -> None:
        """Ends it: what is held is given back first, if it has not been before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks, timeout=STOP_TIMEOUT_S)

    async def _harvest(self, redis: RedisClient) -> None:
        settings = self._settings
        board = CapacityBoard(redis, settings.jobs.namespace, settings.harvest.allotment_ttl_ms)
        harvester = Harvester(
            engine=self._engine,
            queue=JobQueue(redis, settings),
            store=FileStore(settings.files_url),
            board=board,
            settings=settings,
            replica_id=serve.get_replica_context().replica_id.unique_id,
            model=settings.model.served_name,
            revision=self._revision,
            recorder=self._recorder,
            latency=self._latency,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(harvester.run())
                group.create_task(self._leave_when_told(harvester))
                if settings.harvest.scale_for_deadlines > 0:
                    group.create_task(self._follow_deadlines(board))
        finally:
            await harvester.drain()

    async def _follow_deadlines(self, board: CapacityBoard) -> NoReturn:
        while True:
            with suppress(*OUTAGES):  # What was wanted last still is.
                self.extra_replicas = await board.read_extra_replicas(self._settings.model.served_name)
            await asyncio.sleep(EXTRA_PERIOD_S)

    async def _leave_when_told(self, harvester: Harvester) -> None:
        reason = await self._departure.wait()
        await harvester.leave(self._settings.harvest.hand_back_s, ended_s=LAST_WORDS_S if reason == "engine" else 0.0)
        self._handed_back.set()

    async def _end_with_engine(self) -> None:
        """Ends the process when its engine has died, so that Serve starts another; those who wait are told before."""
        while await self._departure.wait() != "engine":  # noqa: ASYNC110 - told to go first, its engine may die yet
            await asyncio.sleep(POLL_S)
        log.critical("the engine has died; this replica ends, and Serve starts another")
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                while self._has_online():  # noqa: ASYNC110 - counted by the engine
                    await asyncio.sleep(POLL_S)
                await self._handed_back.wait()
        except TimeoutError:
            log.warning("not all requests of the dead engine were told", online=self._has_online())
        await asyncio.sleep(POLL_S)  # What was said last is on its way.
        self._end()

    def _has_online(self) -> bool:
        stats = self._engine.stats()
        return stats.online_running + stats.online_waiting > 0


def end_process() -> None:
    """Ends this process with all that it has started, at once: nothing else would keep it from being used."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(1)
