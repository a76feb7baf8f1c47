"""The application without Ray and with a light engine, as a household whose processes are killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

from conserve.config import Settings
from conserve.jobs import embedded
from loadtests.killing.client import PatientClient
from loadtests.killing.household import TENANTS, Victim, kill_redis
from loadtests.killing.leftovers import find_left
from loadtests.killing.questions import Questions
from loadtests.killing.roles import FRONT_SOCKET, Role, play
from loadtests.killing.testing.engine import MODEL, LightQuestions

END_LIMIT_S: Final = 20.0
LONGEST_ABSENCE_S: Final = 0.5
"""Before a process that was killed is started again; Redis comes back when the controller has noticed."""


def make_settings(folder: Path) -> Settings:
    """Short leases, and no request is given up: whoever holds it when it is killed is not to blame."""
    jobs = {"lease_ms": 1_500, "max_attempts": 100, "suspicions": 100, "retry_delay_s": 0.05, "commit_period_ms": 50}
    harvest = {"report_period_ms": 100, "allotment_ttl_ms": 1_000, "max_window": 16}
    sections = {"jobs": jobs, "harvest": harvest, "model": {"name": MODEL}, "tenants": TENANTS}
    return Settings.model_validate({"state_dir": folder, **sections})


class LightHousehold:
    """All processes of a small deployment.

    Args:
        folder: For Redis, files and logs.
        replicas: How many replicas it has.
        generator: Draws who is killed.
    """

    def __init__(self, folder: Path, replicas: int, generator: random.Random) -> None:
        self._settings = make_settings(folder)
        self._generator = generator
        self._log = folder / "processes.log"
        self._redis_url = ""
        self._roles: dict[str, Role] = {f"replica-{number}": "replica" for number in range(replicas)}
        self._roles |= {"controller": "controller", "front": "front"}
        self._context = multiprocessing.get_context("forkserver")
        # Processes begin where these are imported already.
        self._context.set_forkserver_preload(["loadtests.killing.roles"])
        self._processes: dict[str, ForkServerProcess] = {}

    def start(self) -> None:
        """Starts all of them."""
        self._redis_url = embedded.ensure_running(self._settings.state_dir)
        for name in self._roles:
            self._start(name)

    def stop(self) -> None:
        """Ends all of them."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join(END_LIMIT_S)
        embedded.stop(self._settings.state_dir)

    def check(self) -> None:
        """Looks whether one has ended that nobody has killed.

        Raises:
            RuntimeError: its name.
        """
        for name, process in self._processes.items():
            if not process.is_alive():
                raise RuntimeError(f"{name} has ended with {process.exitcode}; see {self._log}")

    def connect(self, key: str) -> PatientClient:
        """A client of the front."""
        return PatientClient("http://front", key, str(self._settings.state_dir / FRONT_SOCKET))

    async def find_left(self) -> list[str]:
        """As `leftovers.find_left`."""
        return await find_left(self._settings)

    async def learn(self, client: PatientClient) -> Questions:
        """What the light engine answers is known."""
        return LightQuestions()

    async def kill(self, victim: Victim) -> bool:
        """Kills one and lets it come back; False if there was none to kill."""
        if victim is Victim.REDIS:
            return kill_redis(self._settings.state_dir)
        name = self._generator.choice([name for name, role in self._roles.items() if role == victim.value])
        process = self._processes.pop(name)
        process.kill()
        await asyncio.to_thread(process.join, END_LIMIT_S)
        await asyncio.sleep(self._generator.uniform(0.0, LONGEST_ABSENCE_S))
        self._start(name)
        return True

    def _start(self, name: str) -> None:
        process = self._context.Process(
            target=play, args=(self._roles[name], self._settings, self._redis_url, name, self._log), name=name
        )
        process.start()
        self._processes[name] = process
