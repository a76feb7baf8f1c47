"""What an application has taken of the machine at a moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
from pydantic import BaseModel

from loadtests.chaos.kinds import ProcessKind

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - it is looked at, not written to
MIB: Final = 2**20


class ProcessSample(BaseModel):
    """One process.

    Attributes:
        pss_mib: Resident memory, with shared pages by the number of those who share them. It grows, too, where
            another program of the machine ends that has shared some.
        rss_mib: Resident memory, with all its shared pages.
        files: Open descriptors.
        threads: Of it.
    """

    pss_mib: float
    rss_mib: float
    files: int
    threads: int


class QueueSample(BaseModel):
    """What Redis holds, and what replicas say.

    Attributes:
        keys: All.
        kept_keys: Those of batches and files, which are kept after their end (`jobs.batches_kept_s`).
        memory_mib: That it uses.
        kept_memory_mib: Of those keys.
        batches: That are there.
        kv_usage: Share of KV blocks in use, of all replicas.
    """

    keys: int
    kept_keys: int
    memory_mib: float
    kept_memory_mib: float
    batches: int
    kv_usage: float


class Sample(BaseModel):
    """One moment.

    Attributes:
        at_s: Since the start of the load.
        processes: By name and process id.
        shared_files, shared_mib: In the shared memory of the machine.
        queue: None while Redis does not answer.
        clients: Online ones that are active.
    """

    at_s: float
    processes: dict[str, ProcessSample]
    shared_files: int
    shared_mib: float
    queue: QueueSample | None = None
    clients: int = 0

    @property
    def rss_mib(self) -> float:
        """Resident memory of all processes; what several share counts for each."""
        return sum(process.rss_mib for process in self.processes.values())


def sample_processes(processes: Iterable[psutil.Process], names: Mapping[int, str]) -> dict[str, ProcessSample]:
    """Samples of processes; those that have ended meanwhile are left out.

    Args:
        processes: To look at.
        names: By process id; others are called as their program.
    """
    found = {}
    for process in processes:
        with suppress(psutil.Error):
            memory = process.memory_full_info()
            name = f"{names.get(process.pid) or process.name()} {process.pid}"
            found[name] = ProcessSample(
                pss_mib=memory.pss / MIB,
                rss_mib=memory.rss / MIB,
                files=process.num_fds(),
                threads=process.num_threads(),
            )
    return found


def name_processes(kinds: Mapping[ProcessKind, Sequence[psutil.Process]]) -> dict[int, str]:
    """Names of processes by their kind."""
    return {process.pid: kind.value for kind, processes in kinds.items() for process in processes}


def measure_shared_memory(folder: Path = SHARED_MEMORY) -> tuple[int, float]:
    """How many files there are in a folder, with those in folders of it, and their size in MiB."""
    count, size = 0, 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                count += 1
                size += path.stat().st_blocks * 512
    return count, size / MIB
