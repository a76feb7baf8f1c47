"""A short soak of the application without Ray; half an hour of all of it is a command (`make soak`)."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Set
from pathlib import Path

import httpx
import psutil
import pytest

from conserve.config import Settings
from loadtests.chaos.faults import Fault
from loadtests.chaos.kinds import ProcessKind
from loadtests.chaos.schedule import Draw
from loadtests.killing.client import PatientClient
from loadtests.killing.household import KEYS
from loadtests.killing.light import LightHousehold, make_settings
from loadtests.killing.questions import Questions
from loadtests.killing.roles import FRONT_SOCKET
from loadtests.killing.testing.engine import LightQuestions
from loadtests.soak.__main__ import write_report
from loadtests.soak.run import SoakRun

KEY = KEYS["a"]
LIMIT_S = 60.0


class HouseholdStack:
    """What a soak needs of a household. Its front answers chats on harvested capacity."""

    faults = ()
    not_applicable: Mapping[str, str] = {}
    expected: Mapping[ProcessKind, int] = {}
    recovery_limit_s = LIMIT_S
    notes = ()
    base_url = "http://front"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._household = LightHousehold(folder, 2, random.Random(1))
        self.settings: Settings = make_settings(folder)

    async def start(self) -> None:
        await asyncio.to_thread(self._household.start)

    async def stop(self) -> None:
        await asyncio.to_thread(self._household.stop)

    def connect(self) -> PatientClient:
        return self._household.connect(KEY)

    def connect_online(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self._folder / FRONT_SOCKET))
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.AsyncClient(transport=transport, base_url=self.base_url, timeout=LIMIT_S, headers=headers)

    async def learn(self, client: PatientClient) -> Questions:
        await client.list_batches()  # Is answered once everything is there.
        return LightQuestions()

    def list_processes(self) -> list[psutil.Process]:
        redis = int((self._folder / "redis" / "redis.pid").read_text())
        return [*psutil.Process().children(recursive=True), psutil.Process(redis)]

    def sort_processes(self) -> dict[ProcessKind, list[psutil.Process]]:
        return {kind: [] for kind in ProcessKind}

    def make_fault(self, draw: Draw) -> Fault:
        raise NotImplementedError

    def find_held(self, silenced: Set[int]) -> set[str] | None:
        raise NotImplementedError


async def test_everything_is_sampled_under_a_load_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtests.soak.load.CANCELLED", 1.0)  # There is time for a few batches only.
    monkeypatch.setattr("loadtests.soak.load.LEAVES", 0.5)
    run = SoakRun(
        HouseholdStack(tmp_path / "state"),
        "light",
        minutes=0.3,
        warm_up_minutes=0.1,
        period_s=0.8,
        clients=6,
        requests=(1, 10),
        seed=1,
    )
    report = await run.run()
    for name in ("chats", "clients left", "batches", "batches cancelled", "batch requests"):
        assert report.load.get(name, 0) > 0, report.load
    assert report.load.get("chats failed", 0) == 0
    assert (report.ended, report.begun) == ([], [])
    names = {growth.name for growth in report.growths}
    assert sum(name.startswith("memory of ") for name in names) >= 5 + 2  # Roles and the server, Redis twice.
    assert {"resident memory of all processes", "files in shared memory", "KV blocks in use"} <= names
    assert all(sample.queue is not None and sample.rss_mib > 0 for sample in report.samples)
    last = report.samples[-1].queue
    assert last is not None
    assert last.batches > 0
    assert 0 < last.kept_memory_mib < last.memory_mib
    write_report(report, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "soak.json").read_text())["load"] == report.load
    assert "<img" in (tmp_path / "out" / "soak.html").read_text()
