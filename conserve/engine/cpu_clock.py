"""CPU time of the engine's own processes."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

REFRESH_S = 10.0


class ChildCpuClock:
    """CPU seconds used by the children of this process, all generations, ended ones included.

    Finding the children reads the whole process table, so it is done now and then only: an engine has its processes
    from its start. What a child used after the last reading before its end is not counted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._process = psutil.Process()
        self._clock = clock
        self._children: list[psutil.Process] = []
        self._found_at_s = float("-inf")
        self._used_s: dict[int, float] = {}

    def read(self) -> float:
        """CPU seconds so far; never falls."""
        now_s = self._clock()
        if now_s - self._found_at_s >= REFRESH_S:
            self._found_at_s = now_s
            self._children = self._process.children(recursive=True)
        for child in self._children:
            try:
                times = child.cpu_times()
            except psutil.Error:  # it has ended
                continue
            self._used_s[child.pid] = max(self._used_s.get(child.pid, 0.0), times.user + times.system)
        return sum(self._used_s.values())
