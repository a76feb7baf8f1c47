"""How much offline work is done from moment to moment, from what engines write down as they produce it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Set
from pathlib import Path
from typing import Final, NoReturn

PERIOD_S: Final = 0.1
WINDOW_S: Final = 5.0
"""Rates are averages over so long."""


class OfflineMeter:
    """Reads the engines' log while it grows.

    Args:
        log: See `LightEngine`.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._place = 0
        self._samples: list[tuple[float, dict[int, int]]] = []

    async def run(self) -> NoReturn:
        """Reads for ever, until cancelled."""
        while True:
            self.read(time.monotonic())
            await asyncio.sleep(PERIOD_S)

    def read(self, now_s: float) -> None:
        """Takes in what was written since the last time."""
        counts: dict[int, int] = {}
        if self._log.exists():
            with self._log.open("rb") as log:
                log.seek(self._place)
                content = log.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._place += len(whole)
            for line in whole.decode("ascii").splitlines():
                _, attempt, _, count = line.split()
                process = int(attempt.split(".")[0])
                counts[process] = counts.get(process, 0) + int(count)
        self._samples.append((now_s, counts))

    def find_rate(self, begin_s: float, end_s: float, without: Set[int] = frozenset()) -> float:
        """Tokens per second in a time, without those of some processes."""
        tokens = sum(
            count
            for at_s, counts in self._samples
            if begin_s < at_s <= end_s
            for process, count in counts.items()
            if process not in without
        )
        return tokens / (end_s - begin_s)

    def count_processes(self, since_s: float) -> int:
        """In how many processes something was produced since."""
        return len({process for at_s, counts in self._samples if at_s > since_s for process in counts})

    def list_shares(self, since_s: float, until_s: float, rate: float) -> list[float]:
        """The rate in each second of a time, as a share of another."""
        return [
            round(self.find_rate(since_s + second, since_s + second + 1) / rate, 2)
            for second in range(int(until_s - since_s))
        ]

    def find_return(self, since_s: float, until_s: float, rate: float) -> float | None:
        """Seconds since a moment after which the rate is never less in a time; None: it is less to its end."""
        last_s: float | None = None
        steps = int((until_s - since_s - WINDOW_S) / PERIOD_S)
        for step in range(steps + 1):
            begin_s = since_s + step * PERIOD_S
            if self.find_rate(begin_s, begin_s + WINDOW_S) < rate:
                last_s = begin_s + WINDOW_S
        if last_s is None:
            return 0.0
        return None if last_s >= until_s - WINDOW_S else last_s - since_s
