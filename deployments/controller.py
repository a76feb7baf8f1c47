"""The harvesting controller as a Serve deployment: one replica with two loops, and no request passes through it."""

from __future__ import annotations

import asyncio
import secrets
import socket

import structlog

from conserve.config import EMBEDDED_REDIS, Settings
from conserve.harvest.board import CapacityBoard
from conserve.harvest.collector import rest_collector
from conserve.harvest.controller import HarvestController, weights_of
from conserve.harvest.deadline_watch import DeadlineWatch
from conserve.jobs import embedded
from conserve.jobs.capacity_store import CapacityStore
from conserve.jobs.errors import EmbeddedServerError
from conserve.jobs.files import FileStore
from conserve.jobs.leadership import Leadership
from conserve.jobs.lifecycle import BatchKeeper
from conserve.jobs.link import RedisClient, keep_connected
from conserve.jobs.queue import JobQueue
from conserve.jobs.retention import FileRetention
from conserve.telemetry.logs import configure_service_logs
from deployments.ray_cluster import find_cluster
from deployments.ray_metrics import RayRecorder

log = structlog.get_logger(__name__)

KEEPER_PERIOD_S = 0.5
SWEEP_PERIOD_S = 30.0
WATCH_PERIOD_S = 2.0
STOP_TIMEOUT_S = 5.0


class ConServeController:
    """Allots harvest windows to replicas, leads batches to their end, watches deadlines, deletes expired files.

    Args:
        settings: ConServe's settings, as configured.
        redis_url: the Redis that `jobs.redis_url` stands for.
        models: names of the served models.
        cluster: a name that the controllers of this cluster have and no other; Ray's by default.
    """

    def __init__(self, settings: Settings, redis_url: str, models: list[str], cluster: str | None = None) -> None:
        configure_service_logs()
        self._settings = settings
        self._redis_url = redis_url
        self._models = models
        self._recorder = RayRecorder()
        self._cluster = cluster or find_cluster() or f"{socket.gethostname()}-{secrets.token_hex(8)}"
        rest_collector()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def check_health(self) -> None:
        """Fails when the loops have ended, so that Serve starts the controller anew.

        Raises:
            RuntimeError: the loops have ended.
        """
        if self._task.done():
            error = None if self._task.cancelled() else self._task.exception()
            raise RuntimeError(f"the controller's loops have ended: {error!r}")

    async def __del__(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task], timeout=STOP_TIMEOUT_S)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_connected(self._settings.with_redis_url(self._redis_url), self._control))
            if self._settings.jobs.redis_url == EMBEDDED_REDIS:
                group.create_task(self._watch_embedded())

    async def _control(self, redis: RedisClient) -> None:
        settings = self._settings
        queue = JobQueue(redis, settings)
        board = CapacityBoard(redis, settings.jobs.namespace, settings.harvest.allotment_ttl_ms)
        history = CapacityStore(redis, settings.jobs.namespace)
        watch = DeadlineWatch(board, queue, history, settings, self._models, self._recorder)
        weights = weights_of(settings.tenants)
        controller = HarvestController(board, queue, settings.harvest, weights, lambda: watch.urgencies, self._recorder)
        store = FileStore(settings.files_url)
        keeper = BatchKeeper(redis, store, settings, self._models, recorder=self._recorder)

        async def lead() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(controller.run())
                group.create_task(watch.run())
                group.create_task(keeper.run(KEEPER_PERIOD_S))
                group.create_task(FileRetention(redis, store, settings).run(SWEEP_PERIOD_S))

        await Leadership(redis, settings.jobs.namespace, self._cluster).work(lead)

    async def _watch_embedded(self) -> None:
        """An embedded Redis that died is started again; its append-only file holds what was accepted."""
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            try:
                if not await asyncio.to_thread(embedded.is_running, self._settings.state_dir):
                    log.warning("the embedded Redis is gone; starting it again")
                    await asyncio.to_thread(embedded.ensure_running, self._settings.state_dir)
            except (EmbeddedServerError, OSError) as error:
                log.error("the embedded Redis does not start", error=str(error), retry_in_s=WATCH_PERIOD_S)
