"""The processes, how one of them is killed, and how it comes back."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import signal
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final, Literal

import psutil

from conserve.config import Settings
from conserve.jobs import embedded
from loadtests.killing.roles import Role, play

Victim = Literal["replica", "controller", "front", "redis"]
END_LIMIT_S: Final = 20.0
LONGEST_ABSENCE_S: Final = 0.5
"""Before a process that was killed is started again; Redis comes back when the controller has noticed."""


class Household:
    """All processes of a small deployment.

    Args:
        settings: Of it.
        replicas: How many replicas it has.
        generator: Draws who is killed.
        log: What the processes say goes there.
    """

    def __init__(self, settings: Settings, replicas: int, generator: random.Random, log: Path) -> None:
        self._settings = settings
        self._generator = generator
        self._log = log
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

    async def kill(self, victim: Victim) -> bool:
        """Kills one and lets it come back; False if there was none to kill."""
        if victim == "redis":
            return self._kill_redis()
        name = self._generator.choice([name for name, role in self._roles.items() if role == victim])
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

    def _kill_redis(self) -> bool:
        try:
            process = psutil.Process(int((self._settings.state_dir / "redis" / "redis.pid").read_text()))
            if not embedded.is_running(self._settings.state_dir):
                return False
            process.send_signal(signal.SIGKILL)
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return False
        return True
