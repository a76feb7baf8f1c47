"""The application with light engines on several nodes of one machine, with a Redis on a node of its own."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import uuid
from collections.abc import Set
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import httpx
import psutil

from conserve.config import Settings
from conserve.launch.interruption import renew_handlers
from conserve.launch.ports import find_free_ports
from conserve.launch.processes import STACK_ID_VARIABLE, find_processes
from conserve.launch.serve_proxy import HEALTH_CHECK_PERIOD_S
from deployments.testing.cluster import LocalCluster
from deployments.testing.names import CONTROLLER, FRONT, ONLINE_LOG, REPLICA, name_actor
from loadtests.chaos.faults import ClockStep, Fault
from loadtests.chaos.kinds import Census, ProcessKind
from loadtests.chaos.link import Link, RelayLink, TunnelLink, has_namespaces
from loadtests.chaos.schedule import STEP_S, Draw, FaultKind, FaultType, scale
from loadtests.chaos.stack import (
    CLOCK_FAULTS,
    LINK_FAULTS,
    REDIS_FAULTS,
    STORAGE_FAULTS,
    list_process_faults,
    make_link_fault,
    make_process_fault,
    make_restart,
    make_storage_fault,
)
from loadtests.chaos.storage import make_storage
from loadtests.killing.chats import TIMEOUT_S, find_held
from loadtests.killing.client import PatientClient
from loadtests.killing.questions import Questions
from loadtests.killing.redis_server import SteppedClock, TcpRedis
from loadtests.killing.testing.engine import MODEL, LightQuestions
from loadtests.killing.testing.mortal import CORE, MortalEngine

FRONTS: Final = 2
LEASE_MS: Final = 5_000
CLOCK_LIBRARY: Final = "vendor/libfaketime/src/libfaketime.so.1"
"""In the package `libfaketime`."""
AS_CONFIGURED: Final = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(HEALTH_CHECK_PERIOD_S)}
"""A proxy that has died comes back as soon as in the application; clusters for tests have more patience."""
NO_WORKER: Final = "the light engine has no worker"
IDLE_CORE: Final = "the core of the light engine computes nothing: nobody would notice"


def make_settings(folder: Path, engines: int, redis_url: str) -> Settings:
    """Shorter leases than by default; no request is given up: whoever holds it when it is killed is not to blame."""
    sections = {
        "model": {"name": MODEL},
        "replicas": engines,
        "harvest": {"max_window": 4},
        "jobs": {"redis_url": redis_url, "lease_ms": LEASE_MS, "max_attempts": 100, "suspicions": 100},
    }
    return Settings.model_validate({"state_dir": folder, **sections})


class LightStack:
    """See the module; `loadtests.chaos.stack.Stack` says what its methods do.

    Args:
        folder: For everything.
        engines: On as many nodes.
        generator: Draws which packets are dropped.
    """

    recovery_limit_s = 120.0

    def __init__(self, folder: Path, engines: int, generator: random.Random) -> None:
        self._folder = folder
        self._engines = engines
        # Everything that is started inherits it.
        self._mark = os.environ.setdefault(STACK_ID_VARIABLE, uuid.uuid4().hex)
        port, redis_port = find_free_ports(2)
        if has_namespaces():
            self._link: Link = TunnelLink(port, generator)
            redis_port = port
        else:
            self._link = RelayLink(port, redis_port, generator)
        library = find_clock_library()
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = SteppedClock(folder / "clock")
        self._redis = TcpRedis(
            folder / "redis",
            redis_port,
            self._link.bind,
            self._link.prefix,
            self._clock.make_environment(library) if library is not None else None,
        )
        self.settings = make_settings(folder, engines, f"redis://{self._link.host}:{self._link.port}")
        self._storage = make_storage(Path(self.settings.files_url))
        self._cluster = LocalCluster(folder, engines, environ=AS_CONFIGURED)
        titles = {ProcessKind.REPLICA: REPLICA, ProcessKind.FRONT: FRONT, ProcessKind.CONTROLLER: CONTROLLER}
        self._census = Census({kind: f"ray::{name_actor(name)}" for kind, name in titles.items()}, CORE)
        self._exits = AsyncExitStack()
        self._starting: asyncio.Future[None] | None = None
        self.base_url = self._cluster.base_url
        self.expected = dict.fromkeys(ProcessKind, 1) | {
            ProcessKind.REPLICA: engines,
            ProcessKind.ENGINE_CORE: engines,
            ProcessKind.FRONT: FRONTS,
            ProcessKind.WORKER: 0,
        }
        self.faults: list[FaultType] = []
        self.not_applicable: dict[str, str] = {}
        self._list_faults(has_clock=library is not None)
        self.notes = [
            f"{engines} light engines, {FRONTS} fronts; a head with HAProxy and Serve's controller",
            f"Redis: {self._link.description}",
            f"file storage: {self._storage.description}",
        ]

    async def start(self) -> None:
        self._exits.push_async_callback(self._link.close)
        await self._link.open()
        self._exits.push_async_callback(asyncio.to_thread, self._storage.close)
        await asyncio.to_thread(self._storage.open)
        self._exits.push_async_callback(asyncio.to_thread, self._redis.stop)
        self._redis.start()
        await asyncio.to_thread(self._redis.wait_until_ready)
        self._exits.push_async_callback(asyncio.to_thread, self._cluster.stop)
        # A thread cannot be interrupted: what it starts after `stop` would stay.
        self._starting = asyncio.ensure_future(asyncio.to_thread(self._start_cluster))
        await asyncio.shield(self._starting)
        renew_handlers()

    async def stop(self) -> None:
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._exits.aclose()

    def connect(self) -> PatientClient:
        return PatientClient(self.base_url, "none")

    def connect_online(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.base_url, timeout=TIMEOUT_S)

    async def learn(self, client: PatientClient) -> Questions:
        return LightQuestions()

    def list_processes(self) -> list[psutil.Process]:
        return find_processes(self._mark)

    def sort_processes(self) -> dict[ProcessKind, list[psutil.Process]]:
        found = self._census.sort(self.list_processes())
        found[ProcessKind.REDIS] = [psutil.Process(pid) for pid in [self._redis.pid] if pid is not None]
        return found

    def make_fault(self, draw: Draw) -> Fault:
        made = (
            make_process_fault(draw, lambda kind: self.sort_processes()[kind], self._redis.start)
            or make_storage_fault(draw, self._storage)
            or make_link_fault(draw, self._link)
            or make_restart(draw, self._redis.stop, self._redis.start)
        )
        if made is not None:
            return made
        step_s = scale(draw.strength, STEP_S)
        return ClockStep(self._clock, step_s if draw.fault.kind is FaultKind.CLOCK_FORWARD else -step_s)

    def find_held(self, silenced: Set[int]) -> set[str] | None:
        return find_held(self._folder / ONLINE_LOG, silenced)

    def _start_cluster(self) -> None:
        self._cluster.start()
        # Ray reads its environment when it is imported, which is set by now.
        from deployments.testing.application import build_light_app

        self._cluster.run(build_light_app(self.settings, MortalEngine, fronts=FRONTS, replicas=self._engines))

    def _list_faults(self, *, has_clock: bool) -> None:
        stopped_core = FaultType(FaultKind.STOP, ProcessKind.ENGINE_CORE.value)
        self.faults += [one for one in list_process_faults({ProcessKind.WORKER}) if one != stopped_core]
        self.not_applicable[f"SIGKILL and SIGSTOP {ProcessKind.WORKER}"] = NO_WORKER
        self.not_applicable[stopped_core.name] = IDLE_CORE
        self.faults += [*REDIS_FAULTS, *LINK_FAULTS]
        for one in STORAGE_FAULTS:
            if one.kind is FaultKind.STORAGE_FULL and not self._storage.can_be_full:
                self.not_applicable[one.name] = self._storage.description
            else:
                self.faults.append(one)
        if has_clock:
            self.faults += CLOCK_FAULTS
        else:
            self.not_applicable |= {one.name: "the package libfaketime is not installed" for one in CLOCK_FAULTS}


def find_clock_library() -> Path | None:
    """The library that gives a program another time; None where it is not installed."""
    package = importlib.util.find_spec("libfaketime")
    if package is None or package.origin is None:
        return None
    library = Path(package.origin).parent / CLOCK_LIBRARY
    return library if library.exists() else None
