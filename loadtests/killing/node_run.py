"""A run in which things die in a cluster of several nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psutil
import structlog

from conserve.config import Settings
from conserve.jobs import embedded
from conserve.launch.interruption import renew_handlers
from conserve.launch.ports import find_free_ports
from deployments.testing.cluster import LocalCluster, kill_all
from deployments.testing.names import CONTROLLER, ONLINE_LOG, REPLICA, SERVE_CONTROLLER, name_actor
from loadtests.killing.chats import Chat, ChatClients, find_held
from loadtests.killing.client import PatientClient
from loadtests.killing.ledger import Verdict
from loadtests.killing.meter import OfflineMeter
from loadtests.killing.node_report import Blow, Consequence, NodeKillReport, ScaleIn
from loadtests.killing.questions import make_input
from loadtests.killing.redis_server import TcpRedis
from loadtests.killing.roles import ENGINE_LOG
from loadtests.killing.testing.engine import MODEL, LightQuestions
from loadtests.killing.testing.mortal import CORE, MortalEngine

log = structlog.get_logger(__name__)

REQUESTS: Final = 100
"""Of a batch."""
LEFT: Final = 25
"""Requests that are kept waiting for each place of the windows, 20 s of work: without a controller none come."""
STEADY_S: Final = 5.0
"""Rates before are averages over so long."""
BACK_SHARE: Final = 0.9
NOTICE_S: Final = 30
POLL_S: Final = 0.1
START_LIMIT_S: Final = 120.0
END_LIMIT_S: Final = 180.0


def make_settings(folder: Path, engines: int, lease_ms: int) -> Settings:
    """Settings as they are by default, but for a window that does not follow the online load: rates can be compared."""
    harvest = {"max_window": 4, "shut_at_online_requests": 10_000, "open_at_online_requests": 5_000}
    jobs = {"lease_ms": lease_ms, "max_attempts": 100, "suspicions": 100}
    args = {"state_dir": folder, "model": {"name": MODEL}, "replicas": engines, "harvest": harvest, "jobs": jobs}
    return Settings.model_validate(args)


class NodeKillRun:
    """One run.

    Args:
        folder: For everything.
        blows: What is killed, in this order.
        engines: On as many nodes.
        watch_s: So long each blow is watched.
        clients: Online ones.
        lease_ms: Of offline requests.
        scale_in: Whether replicas are told to go, too, before anything is killed.
    """

    def __init__(
        self,
        folder: Path,
        blows: Sequence[Blow],
        engines: int,
        watch_s: float,
        clients: int,
        lease_ms: int,
        *,
        scale_in: bool = False,
    ) -> None:
        self._scales_in = scale_in
        self._folder = folder
        self._blows = blows
        self._engines = engines
        self._watch_s = watch_s
        self._settings = make_settings(folder, engines, lease_ms)
        self._redis = TcpRedis(folder / "head-redis", find_free_ports(1)[0]) if Blow.HEAD in blows else None
        self._cluster = LocalCluster(folder, engines, self._redis.address if self._redis else None)
        self._chats = ChatClients(self._cluster.base_url, clients, LightQuestions())
        self._meter = OfflineMeter(folder / ENGINE_LOG)
        self._is_over = False
        self._rests = asyncio.Event()
        self._deployed = self._settings
        self._names: dict[str, str] = {}

    async def run(self) -> NodeKillReport:
        """Starts everything, kills, waits for the batches, counts, and stops everything."""
        began_s = time.monotonic()
        consequences = []
        scale_in: ScaleIn | None = None
        client = PatientClient(self._cluster.base_url, "none")
        verdict = Verdict(LightQuestions())
        start = asyncio.ensure_future(asyncio.to_thread(self._start))
        try:
            await asyncio.shield(start)
            renew_handlers()
            async with asyncio.TaskGroup() as group:
                meter = group.create_task(self._meter.run())
                group.create_task(self._keep_work_waiting(client))
                group.create_task(self._chats.run(lambda: self._is_over))
                await self._wait_until_steady()
                if self._scales_in:
                    scale_in = await self._scale_in()
                    log.info("replicas were told to go", **scale_in.model_dump())
                for blow in self._blows:
                    consequences.append(await self._strike(blow))
                    log.info("struck", **consequences[-1].model_dump())
                self._is_over = True
                meter.cancel()
            for batch_id, name in self._names.items():
                async with asyncio.timeout(END_LIMIT_S):
                    while not (batch := await client.get(batch_id)).status.ended:  # noqa: ASYNC110 - polled
                        await asyncio.sleep(POLL_S)
                verdict.check(batch, name, REQUESTS, await client.read_lines(batch))
        finally:
            await client.close()
            # A thread cannot be interrupted: what it has started after `_stop` would stay.
            await asyncio.wait([start], timeout=END_LIMIT_S)
            await asyncio.to_thread(self._stop)
        return NodeKillReport(
            engines=self._engines,
            consequences=consequences,
            scale_in=scale_in,
            chats=len(self._chats.chats),
            batches=len(self._names),
            requests=verdict.requests,
            lost=verdict.lost,
            twice=verdict.twice,
            wrong=verdict.wrong,
            unfinished=verdict.unfinished,
            duration_s=time.monotonic() - began_s,
        )

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._redis is not None:
            self._redis.start()
            self._redis.wait_until_ready()
        settings = self._settings.with_redis_url(embedded.ensure_running(self._folder))
        self._cluster.start()
        self._deploy(settings, self._engines)
        self._deployed = settings

    def _deploy(self, settings: Settings, replicas: int) -> None:
        # Ray reads its environment when it is imported, which is set by now.
        from deployments.testing.application import build_light_app

        self._cluster.run(build_light_app(settings, MortalEngine, fronts=2, replicas=replicas))

    async def _scale_in(self) -> ScaleIn:
        busy_s = await self._tell_one_to_go()
        self._rests.set()
        await self._wait_until_idle()
        idle_s = await self._tell_one_to_go()
        self._rests.clear()
        await self._wait_until_steady()
        return ScaleIn(busy_s=busy_s, idle_s=idle_s)

    async def _tell_one_to_go(self) -> float:
        """Seconds until it has gone; afterwards there is another in its place."""
        known = {process.pid for process in self._cluster.find_actors(name_actor(REPLICA))}
        began_s = time.monotonic()
        change = asyncio.create_task(asyncio.to_thread(self._deploy, self._deployed, self._engines - 1))
        async with asyncio.timeout(END_LIMIT_S):
            while all(psutil.pid_exists(pid) for pid in known):  # noqa: ASYNC110 - nobody says when processes end
                await asyncio.sleep(POLL_S)
            took_s = time.monotonic() - began_s
            await change
            await asyncio.to_thread(self._deploy, self._deployed, self._engines)
            if not self._rests.is_set():
                await self._wait_until_steady()
        return took_s

    async def _wait_until_idle(self) -> None:
        async with asyncio.timeout(END_LIMIT_S):
            while self._meter.find_rate(time.monotonic() - STEADY_S, time.monotonic()):  # noqa: ASYNC110 - other processes write to a file
                await asyncio.sleep(POLL_S)

    def _stop(self) -> None:
        self._cluster.stop()
        embedded.stop(self._folder)
        if self._redis is not None:
            self._redis.stop()

    async def _keep_work_waiting(self, client: PatientClient) -> None:
        wanted = LEFT * self._settings.harvest.max_window * self._engines
        left: dict[str, int] = {}
        while not self._is_over:
            if sum(left.values()) < wanted and not self._rests.is_set():
                name = f"b{len(self._names)}"
                batch = await client.submit(make_input(LightQuestions(), name, REQUESTS), {"name": name})
                self._names[batch.id], left[batch.id] = name, REQUESTS
                continue
            for batch_id in [batch_id for batch_id, count in left.items() if count > 0]:
                left[batch_id] = REQUESTS - (await client.get(batch_id)).request_counts.completed
            await asyncio.sleep(POLL_S)

    async def _wait_until_steady(self) -> None:
        """Until offline work and chats have gone on in all engines for a while."""
        async with asyncio.timeout(START_LIMIT_S):
            while True:
                await asyncio.sleep(STEADY_S)
                now_s = time.monotonic()
                lately = [one for one in self._chats.chats if one.ended_s > now_s - STEADY_S]
                if lately and self._meter.count_processes(now_s - STEADY_S) == self._engines:
                    return

    async def _strike(self, blow: Blow) -> Consequence:
        at_s = time.monotonic()
        before = self._meter.find_rate(at_s - STEADY_S, at_s)
        killed = await asyncio.to_thread(self._kill, blow)
        rest = self._meter.find_rate(at_s - STEADY_S, at_s, killed)
        if blow is Blow.HEAD:
            await asyncio.to_thread(self._cluster.start_head)
        await asyncio.sleep(max(0.0, at_s + self._watch_s - time.monotonic()))
        until_s = time.monotonic()
        held = find_held(self._folder / ONLINE_LOG, killed)
        failed = [one for one in self._list_failed(at_s, until_s) if one.name not in held]
        return Consequence(
            blow=blow,
            survivors=rest / before,
            online_held=len(held),
            online_failed=len(failed),
            online_reasons=sorted({f"{one.outcome}: {one.reason}" for one in failed})[:5],
            online_back_s=min(
                (one.ended_s - at_s for one in self._chats.chats if one.began_s > at_s and one.outcome == "answered"),
                default=None,
            ),
            offline_back_s=self._meter.find_return(at_s, until_s, BACK_SHARE * rest),
            offline_shares=self._meter.list_shares(at_s, until_s, rest),
            whole_back_s=self._meter.find_return(at_s, until_s, BACK_SHARE * before),
        )

    def _list_failed(self, since_s: float, until_s: float) -> list[Chat]:
        chats = self._chats.chats
        return [one for one in chats if one.outcome != "answered" and since_s <= one.ended_s <= until_s]

    def _kill(self, blow: Blow) -> set[int]:
        cluster = self._cluster
        if blow is Blow.NODE:
            return cluster.kill_node(self._find_home(name_actor(CONTROLLER)))
        if blow is Blow.NOTICE:
            return self._take_away(self._find_home(name_actor(REPLICA)))
        if blow is Blow.HEAD:
            return cluster.kill_head()
        if blow is Blow.ENGINE:
            (replica, *_) = cluster.find_actors(name_actor(REPLICA))
            kill_all(one for one in replica.children() if one.cmdline() == list(CORE))
            return {replica.pid}
        names = {
            Blow.REPLICA: name_actor(REPLICA),
            Blow.CONTROLLER: name_actor(CONTROLLER),
            Blow.SERVE: SERVE_CONTROLLER,
        }
        (victim, *_) = cluster.find_actors(names[blow])
        kill_all([victim, *victim.children(recursive=True)])
        return {victim.pid}

    def _take_away(self, node: Any) -> set[int]:
        """Gives notice of a node, and kills it when its replica has left, or when its time is over."""
        until_s = time.monotonic() + NOTICE_S
        replicas = {process.pid for process in self._cluster.find_actors(name_actor(REPLICA), node)}
        self._cluster.drain_node(node, NOTICE_S)
        while self._cluster.find_actors(name_actor(REPLICA), node) and time.monotonic() < until_s:
            time.sleep(POLL_S)
        return self._cluster.kill_node(node) | replicas

    def _find_home(self, actor: str) -> Any:
        """The node that an actor runs on."""
        return next(node for node in self._cluster.list_nodes() if self._cluster.find_actors(actor, node))
