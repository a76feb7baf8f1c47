"""The application as `conserve up` starts it, with a real model and the embedded Redis."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Set
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import httpx
import psutil

from conserve.jobs import embedded
from conserve.launch.ports import find_free_ports
from conserve.launch.processes import end_processes, find_processes
from conserve.launch.record import read_record
from conserve.launch.stack import LocalStack, RunningStack
from loadtests.chaos.faults import Fault
from loadtests.chaos.kinds import Census, ProcessKind
from loadtests.chaos.schedule import Draw, FaultKind
from loadtests.chaos.stack import (
    CLOCK_FAULTS,
    LINK_FAULTS,
    REDIS_FAULTS,
    STORAGE_FAULTS,
    list_process_faults,
    make_process_fault,
    make_restart,
    make_storage_fault,
)
from loadtests.chaos.storage import make_storage
from loadtests.killing.application import CONFIG, learn_answers
from loadtests.killing.chats import TIMEOUT_S
from loadtests.killing.client import PatientClient
from loadtests.killing.questions import Questions

TITLES: Final = {
    ProcessKind.REPLICA: "ray::ServeReplica:conserve:ConServeReplica",
    ProcessKind.FRONT: "ray::ServeReplica:conserve:Ingress",
    ProcessKind.CONTROLLER: "ray::ServeReplica:conserve:Controller",
    ProcessKind.ENGINE_CORE: "VLLM::EngineCore",
    ProcessKind.WORKER: "VLLM::Worker",
}
FRONTS: Final = 2
UNIX_SOCKET: Final = "the embedded Redis is reached by a unix socket"
EMBEDDED: Final = "the controller starts the embedded Redis, with the clock of the machine"


class RealStack:
    """See the module; `loadtests.chaos.stack.Stack` says what its methods do.

    Args:
        folder: For its state.
        replicas: Engines.
    """

    recovery_limit_s = 600.0

    def __init__(self, folder: Path, replicas: int) -> None:
        self._folder = folder
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CONSERVE_")}
        # In bfloat16 the answers of a small model depend on what is computed beside them.
        environ |= {"CONSERVE_ENGINE__DTYPE": "float32", "CONSERVE_REPLICAS": str(replicas)}
        environ |= {"CONSERVE_HTTP__FRONTS": str(FRONTS), "CONSERVE_JOBS__LEASE_MS": "5000"}
        # No request is given up: whoever holds it when it is killed is not to blame.
        environ |= {"CONSERVE_JOBS__MAX_ATTEMPTS": "100", "CONSERVE_JOBS__SUSPICIONS": "100"}
        http_port, grpc_port = find_free_ports(2)
        self._stack = LocalStack(CONFIG, folder, environ, http_port=http_port, grpc_port=grpc_port)
        self.settings = self._stack.config.settings
        self._storage = make_storage(Path(self.settings.files_url))
        self._census = Census(TITLES)
        self._exits = AsyncExitStack()
        self._starting: asyncio.Future[RunningStack] | None = None
        self.base_url = f"http://127.0.0.1:{http_port}"
        self.expected = dict.fromkeys(ProcessKind, 1) | dict.fromkeys(
            (ProcessKind.REPLICA, ProcessKind.ENGINE_CORE, ProcessKind.WORKER), replicas
        )
        self.expected[ProcessKind.FRONT] = FRONTS
        self.faults = [*list_process_faults(set()), *REDIS_FAULTS]
        self.faults += [one for one in STORAGE_FAULTS if one.kind is not FaultKind.STORAGE_FULL]
        if self._storage.can_be_full:
            self.faults += [one for one in STORAGE_FAULTS if one.kind is FaultKind.STORAGE_FULL]
        self.not_applicable = {one.name: UNIX_SOCKET for one in LINK_FAULTS}
        self.not_applicable |= {one.name: EMBEDDED for one in CLOCK_FAULTS}
        self.notes = [
            f"{replicas} engines of vLLM, the default model in float32; {FRONTS} fronts; started as by `conserve up`",
            "Redis: the embedded one, which the controller starts again",
            f"file storage: {self._storage.description}",
        ]

    async def start(self) -> None:
        self._exits.push_async_callback(asyncio.to_thread, self._storage.close)
        await asyncio.to_thread(self._storage.open)
        self._exits.push_async_callback(asyncio.to_thread, self._stack.down)
        # A thread cannot be interrupted: what it starts after `stop` would stay.
        self._starting = asyncio.ensure_future(asyncio.to_thread(self._stack.up))
        await asyncio.shield(self._starting)

    async def stop(self) -> None:
        if self._starting is not None:
            if not self._starting.done() and (record := read_record(self._folder)) is not None:
                # What it waits for comes no more, so it ends soon.
                await asyncio.to_thread(end_processes, record.stack_id)
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._exits.aclose()

    def connect(self) -> PatientClient:
        return PatientClient(self.base_url, "none")

    def connect_online(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.base_url, timeout=TIMEOUT_S)

    async def learn(self, client: PatientClient) -> Questions:
        return await learn_answers(client)

    def list_processes(self) -> list[psutil.Process]:
        record = read_record(self._folder)
        return [*(find_processes(record.stack_id) if record is not None else []), *self._find_redis()]

    def sort_processes(self) -> dict[ProcessKind, list[psutil.Process]]:
        found = self._census.sort(self.list_processes())
        found[ProcessKind.REDIS] = self._find_redis()
        return found

    def make_fault(self, draw: Draw) -> Fault:
        made = (
            make_process_fault(draw, lambda kind: self.sort_processes()[kind], None)
            or make_storage_fault(draw, self._storage)
            or make_restart(draw, lambda: embedded.stop(self._folder), lambda: embedded.ensure_running(self._folder))
        )
        if made is None:
            raise ValueError(f"{draw.fault.name} is not applicable")
        return made

    def find_held(self, silenced: Set[int]) -> set[str] | None:
        return None

    def _find_redis(self) -> list[psutil.Process]:
        with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            if embedded.is_running(self._folder):
                return [psutil.Process(int((self._folder / "redis" / "redis.pid").read_text()))]
        return []
