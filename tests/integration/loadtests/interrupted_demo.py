"""A demonstration whose stack is a fake one, run as a process of its own so that it can be sent signals."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from loadtests.demo import DemoOptions, conduct


@dataclass(frozen=True)
class Running:
    base_url: str
    dashboard_url: str
    log_dir: Path


class FakeStack:
    """Records in a file when it was taken down, and takes a while for it."""

    def __init__(self, stage: str, base_url: str, out: Path) -> None:
        self._stage, self._base_url, self._out = stage, base_url, out

    def up(self, on_progress: Callable[[str], None]) -> Running:
        on_progress("the engine is loading")
        if self._stage == "up":
            time.sleep(600)
        return Running(self._base_url, self._base_url, self._out)

    def down(self) -> None:
        with (self._out / "downs").open("a") as file:
            file.write("down begun\n")
            file.flush()
            time.sleep(0.5)
            file.write("down ended\n")


if __name__ == "__main__":
    stage_, base_url_, out_ = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    alone_s = 600.0 if stage_ == "chat" else 0.5
    options = DemoOptions(out=out_, requests=60, alone_s=alone_s, chat_rate_per_s=5.0, poll_s=0.05)
    sys.exit(conduct(options, lambda: FakeStack(stage_, base_url_, out_), Console(width=100)))
