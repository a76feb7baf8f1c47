"""What a run needs of the application in which things go wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final, Protocol

import httpx
import psutil

from conserve.config import Settings
from loadtests.chaos.faults import Fault, Impair, Kill, Restart, Stop, StorageFull, StorageReadOnly
from loadtests.chaos.kinds import ProcessKind
from loadtests.chaos.link import Link
from loadtests.chaos.schedule import DELAY_MS, LOSS, Draw, FaultKind, FaultType, scale
from loadtests.chaos.storage import Storage
from loadtests.killing.client import PatientClient
from loadtests.killing.questions import Questions

REDIS_FAULTS: Final = (FaultType(FaultKind.REDIS_RESTART),)
LINK_FAULTS: Final = tuple(FaultType(kind) for kind in (FaultKind.LINK_DELAY, FaultKind.LINK_LOSS, FaultKind.LINK_CUT))
CLOCK_FAULTS: Final = tuple(FaultType(kind) for kind in (FaultKind.CLOCK_FORWARD, FaultKind.CLOCK_BACK))
STORAGE_FAULTS: Final = tuple(FaultType(kind) for kind in (FaultKind.STORAGE_READ_ONLY, FaultKind.STORAGE_FULL))


class Stack(Protocol):
    """An application with everything around it that faults are injected into.

    Attributes:
        base_url: Of its HTTP front.
        faults: What can go wrong in it.
        not_applicable: What cannot, and why.
        expected: How many processes of each kind there are where all is well.
        recovery_limit_s: So long it may take from the end of a fault until all is well.
        notes: What it consists of.
        settings: Of the application, with the URL of its Redis.
    """

    @property
    def base_url(self) -> str: ...
    @property
    def faults(self) -> Sequence[FaultType]: ...
    @property
    def not_applicable(self) -> Mapping[str, str]: ...
    @property
    def expected(self) -> Mapping[ProcessKind, int]: ...
    @property
    def recovery_limit_s(self) -> float: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def settings(self) -> Settings: ...

    async def start(self) -> None:
        """Starts all of it."""

    async def stop(self) -> None:
        """Ends all of it, also where it has started in part."""

    def connect(self) -> PatientClient:
        """A client of its batch routes."""

    def connect_online(self) -> httpx.AsyncClient:
        """A client of its chats, which waits for each part of an answer as long as a chat may take."""

    async def learn(self, client: PatientClient) -> Questions:
        """What to ask it, with the right answers."""

    def list_processes(self) -> list[psutil.Process]:
        """All of its processes."""

    def sort_processes(self) -> dict[ProcessKind, list[psutil.Process]]:
        """Its processes by kind."""

    def make_fault(self, draw: Draw) -> Fault:
        """The fault of a schedule."""

    def find_held(self, silenced: Set[int]) -> set[str] | None:
        """Chats that some processes have begun and not completed; None: nobody writes that down."""


def list_process_faults(missing: Set[ProcessKind]) -> list[FaultType]:
    """SIGKILL and SIGSTOP of each kind of process but for those that are missing."""
    return [
        FaultType(kind, target.value)
        for kind in (FaultKind.KILL, FaultKind.STOP)
        for target in ProcessKind
        if target not in missing
    ]


def make_process_fault(
    draw: Draw, find: Callable[[ProcessKind], Sequence[psutil.Process]], revive: Callable[[], object] | None
) -> Fault | None:
    """The fault of a schedule if it hits a process.

    Args:
        draw: Of the schedule.
        find: The processes of a kind.
        revive: Starts Redis again, where nobody else does.
    """
    if draw.fault.kind not in (FaultKind.KILL, FaultKind.STOP):
        return None
    target = ProcessKind(draw.fault.target)
    if draw.fault.kind is FaultKind.KILL:
        return Kill(lambda: find(target), draw.victim, revive if target is ProcessKind.REDIS else None)
    return Stop(lambda: find(target), draw.victim)


def make_storage_fault(draw: Draw, storage: Storage) -> Fault | None:
    """The fault of a schedule if it hits the file storage."""
    match draw.fault.kind:
        case FaultKind.STORAGE_READ_ONLY:
            return StorageReadOnly(storage)
        case FaultKind.STORAGE_FULL:
            return StorageFull(storage)
    return None


def make_link_fault(draw: Draw, link: Link) -> Fault | None:
    """The fault of a schedule if it hits the way to Redis."""
    match draw.fault.kind:
        case FaultKind.LINK_DELAY:
            return Impair(link, delay_s=scale(draw.strength, DELAY_MS) / 1e3)
        case FaultKind.LINK_LOSS:
            return Impair(link, loss=scale(draw.strength, LOSS))
        case FaultKind.LINK_CUT:
            return Impair(link, loss=1.0)
    return None


def make_restart(draw: Draw, stop: Callable[[], object], start: Callable[[], object]) -> Fault | None:
    """The fault of a schedule if it is a restart of Redis."""
    return Restart(stop, start) if draw.fault.kind is FaultKind.REDIS_RESTART else None
