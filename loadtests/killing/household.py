"""What a run of kills needs of the deployment in which it kills."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import psutil

from conserve.jobs import embedded
from loadtests.killing.client import PatientClient
from loadtests.killing.questions import Questions

KEYS: Final = {"a": "sk-of-a", "b": "sk-of-b"}
"""Tenant -> its key. One of them has twice the weight of the other."""
TENANTS: Final = {name: {"api_keys": [key], "weight": 2 if name == "a" else 1} for name, key in KEYS.items()}


class Victim(StrEnum):
    """What is killed."""

    REPLICA = "replica"
    CONTROLLER = "controller"
    FRONT = "front"
    REDIS = "redis"


class Household(Protocol):
    """A deployment whose processes come back when they are killed."""

    def start(self) -> None:
        """Starts all of them, and waits until they answer."""

    def stop(self) -> None:
        """Ends all of them."""

    def check(self) -> None:
        """Looks whether one has ended that nobody has killed. Raises RuntimeError that names it."""

    def connect(self, key: str) -> PatientClient:
        """A client of its front, with the key of a tenant."""

    async def find_left(self) -> list[str]:
        """What is left in Redis of flex requests, and of quotas that are in use, once nothing runs any more."""

    async def learn(self, client: PatientClient) -> Questions:
        """What to ask it, with the right answers; called before anything is killed."""

    async def kill(self, victim: Victim) -> bool:
        """Kills one and lets it come back; False if there was none to kill."""


def kill_redis(state_dir: Path) -> bool:
    """Kills the embedded server of a state folder; False if there is none."""
    try:
        process = psutil.Process(int((state_dir / "redis" / "redis.pid").read_text()))
        if not embedded.is_running(state_dir):
            return False
        process.send_signal(signal.SIGKILL)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return False
    return True
