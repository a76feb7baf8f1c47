"""The kinds of processes of an application, and how each is recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

import psutil

INITIALISES: Final = "initialize_and_get_metadata"
"""What Ray adds to the title of a replica that is not ready yet."""


class ProcessKind(StrEnum):
    """A kind of process of the application.

    Serve has two proxies where HAProxy is on: a manager, which configures and watches HAProxy, and the one in Python,
    which HAProxy sends requests to while no front runs.
    """

    REPLICA = "replica"
    ENGINE_CORE = "engine core"
    WORKER = "worker"
    FRONT = "front"
    CONTROLLER = "controller"
    HAPROXY = "haproxy"
    PROXY_MANAGER = "proxy manager"
    PROXY = "proxy"
    SERVE_CONTROLLER = "serve controller"
    REDIS = "redis"


ENTRANCES: Final = frozenset({ProcessKind.HAPROXY, ProcessKind.PROXY_MANAGER})
"""There is one of each on a machine, and every online request goes through it."""

TITLES: Final[Mapping[ProcessKind, str]] = {
    ProcessKind.PROXY_MANAGER: "ray::HAProxyManager",
    ProcessKind.PROXY: "ray::ProxyActor",
    ProcessKind.SERVE_CONTROLLER: "ray::ServeController",
}
"""How their titles begin, whichever application they serve."""


class Census:
    """Which processes of an application are of which kind.

    Args:
        titles: How titles begin, beside `TITLES`.
        core: The command of the engines' cores where they have no title.
    """

    def __init__(self, titles: Mapping[ProcessKind, str], core: tuple[str, ...] = ()) -> None:
        self._titles = {**TITLES, **titles}
        self._core = " ".join(core)

    def sort(self, processes: Iterable[psutil.Process]) -> dict[ProcessKind, list[psutil.Process]]:
        """The processes of each kind, in the order of their ids. Those that have ended meanwhile are left out."""
        found: dict[ProcessKind, list[psutil.Process]] = {kind: [] for kind in ProcessKind}
        for process in sorted(processes, key=lambda one: one.pid):
            with suppress(psutil.Error):
                kind = self.classify(process.cmdline())
                if kind is not None:
                    found[kind].append(process)
        return found

    def classify(self, command: list[str]) -> ProcessKind | None:
        """The kind of a process with this command line; None for what is none of them, or is not ready."""
        line = " ".join(command)
        if not line or INITIALISES in line:
            return None
        if line == self._core:
            return ProcessKind.ENGINE_CORE
        if Path(command[0]).name == "haproxy":
            return ProcessKind.HAPROXY
        return next((kind for kind, title in self._titles.items() if line.startswith(title)), None)


def find_missing(
    sorted_processes: Mapping[ProcessKind, list[psutil.Process]], expected: Mapping[ProcessKind, int]
) -> Counter[ProcessKind]:
    """How many of each kind are missing."""
    present = {kind: len(processes) for kind, processes in sorted_processes.items()}
    return Counter({kind: count - present[kind] for kind, count in expected.items() if present[kind] < count})
