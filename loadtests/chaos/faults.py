"""What is done to an application, and undone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import psutil

from conserve.launch.processes import is_alive
from loadtests.chaos.link import Link
from loadtests.chaos.storage import Storage
from loadtests.killing.redis_server import SteppedClock

END_LIMIT_S: Final = 20.0


class NothingToHit(RuntimeError):
    """There is no process of the kind."""


class Fault(Protocol):
    """Something that goes wrong, and ends.

    Attributes:
        lasts: Whether it goes on until it is healed.
    """

    @property
    def lasts(self) -> bool: ...

    async def inject(self) -> frozenset[int]:
        """Lets it happen; the ids of the processes that will not answer any more what they have begun.

        Raises:
            NothingToHit: see there.
        """

    async def heal(self) -> None:
        """Ends it. What is to come back by itself is not waited for."""


class Kill:
    """SIGKILL of a process and of what it has started.

    Args:
        find: The processes of its kind.
        victim: From 0 to 1: which of them.
        revive: Starts another where nobody else does.
    """

    def __init__(
        self,
        find: Callable[[], Sequence[psutil.Process]],
        victim: float,
        revive: Callable[[], object] | None = None,
    ) -> None:
        self._find = find
        self._victim = victim
        self._revive = revive
        self.lasts = revive is not None

    async def inject(self) -> frozenset[int]:
        """See `Fault.inject`."""
        return await asyncio.to_thread(self._kill)

    async def heal(self) -> None:
        """See `Fault.heal`."""
        if self._revive is not None:
            await asyncio.to_thread(self._revive)

    def _kill(self) -> frozenset[int]:
        victim = choose(self._find(), self._victim)
        killed = [victim]
        # With an engine core its replica loses its requests, and ends itself.
        silenced = set()
        with suppress(psutil.NoSuchProcess):
            silenced.add(victim.ppid())
            killed += victim.children(recursive=True)
        for process in killed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(killed, timeout=END_LIMIT_S)
        return frozenset(silenced | {process.pid for process in killed})


class Stop:
    """SIGSTOP of a process, and SIGCONT.

    Args:
        find: The processes of its kind.
        victim: From 0 to 1: which of them.
    """

    lasts = True

    def __init__(self, find: Callable[[], Sequence[psutil.Process]], victim: float) -> None:
        self._find = find
        self._victim = victim
        self._stopped: psutil.Process | None = None

    async def inject(self) -> frozenset[int]:
        """See `Fault.inject`."""
        self._stopped = choose(await asyncio.to_thread(self._find), self._victim)
        self._stopped.send_signal(signal.SIGSTOP)
        return frozenset()

    async def heal(self) -> None:
        """See `Fault.heal`."""
        if self._stopped is not None:
            with suppress(psutil.NoSuchProcess):  # Somebody has taken it for dead.
                self._stopped.send_signal(signal.SIGCONT)


class Restart:
    """A server is told to end, as for an update, and is started again with what it has on disk."""

    lasts = True

    def __init__(self, stop: Callable[[], object], start: Callable[[], object]) -> None:
        self._stop = stop
        self._start = start

    async def inject(self) -> frozenset[int]:
        """See `Fault.inject`."""
        await asyncio.to_thread(self._stop)
        return frozenset()

    async def heal(self) -> None:
        """See `Fault.heal`."""
        await asyncio.to_thread(self._start)


class StorageReadOnly:
    """No file can be written."""

    lasts = True

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def inject(self) -> frozenset[int]:
        """See `Fault.inject`."""
        await asyncio.to_thread(self._storage.make_read_only)
        return frozenset()

    async def heal(self) -> None:
        """See `Fault.heal`."""
        await asyncio.to_thread(self._storage.restore)


class StorageFull(StorageReadOnly):
    """No file can become longer."""

    async def inject(self) -> frozenset[int]:
        """See `Fault.inject`."""
        await asyncio.to_thread(self._storage.fill)
        return frozenset()


class Impair:
    """Packets between the application and Redis are delayed or dropped.

    Args:
        link: On which.
        delay_s: Of each, in each direction.
        loss: Share of them that is dropped.
    """

    lasts = True

    def __init__(self, link: Link, delay_s: float = 0.0, loss: float = 0.0) -> None:
        self._link = link
        self._delay_s = delay_s
        self._loss = loss

    async def inject(self) -> frozenset[int]:
        """See `Fault.inject`."""
        self._link.impair(self._delay_s, self._loss)
        return frozenset()

    async def heal(self) -> None:
        """See `Fault.heal`."""
        self._link.restore()


class ClockStep:
    """The clock that leases go by, that of Redis, jumps, and jumps back at the end.

    Args:
        clock: Of Redis.
        step_s: So far; forward, or back where it is negative.
    """

    lasts = True

    def __init__(self, clock: SteppedClock, step_s: float) -> None:
        self._clock = clock
        self._step_s = step_s

    async def inject(self) -> frozenset[int]:
        """See `Fault.inject`."""
        self._clock.set_offset(self._step_s)
        return frozenset()

    async def heal(self) -> None:
        """See `Fault.heal`."""
        self._clock.set_offset(0.0)


def choose(processes: Sequence[psutil.Process], victim: float) -> psutil.Process:
    """One of some processes.

    Raises:
        NothingToHit: there are none that live.
    """
    living = [process for process in processes if is_alive(process.pid)]
    if not living:
        raise NothingToHit("no process of the kind")
    return living[min(int(victim * len(living)), len(living) - 1)]
