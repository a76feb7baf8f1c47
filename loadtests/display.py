"""What the demonstration shows while it runs: a live view on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from loadtests.chat_load import ChatRecord
from loadtests.engine_status import StatusReport

PLAIN_PERIOD_S = 10.0
REFRESH_PER_S = 2.0
RECENT_CHATS = 10
_MARK_DONE = Text("✓", style="green")
_MARK_BROKEN_OFF = Text("✗", style="red")


@dataclass
class Phase:
    """A stage of the demonstration."""

    name: str
    started_s: float
    ended_s: float | None = None
    broken_off: bool = False


@dataclass
class BatchProgress:
    """The counts of a batch as the server last gave them."""

    status: str
    total: int
    completed: int
    failed: int


@dataclass
class DemoView:
    """Everything that is shown; whoever runs the demonstration keeps it up to date."""

    title: str = "ConServe"
    note: str = ""
    phases: list[Phase] = field(default_factory=list)
    batch: BatchProgress | None = None
    status: StatusReport | None = None
    status_problem: str | None = None
    chats: int = 0
    chat_errors: int = 0
    recent: deque[ChatRecord] = field(default_factory=lambda: deque(maxlen=RECENT_CHATS))
    started_s: float = field(default_factory=time.monotonic)

    def begin(self, name: str) -> None:
        """Ends the phase that runs and begins the next; recent chats are those of the new phase."""
        self.end()
        self.note = ""
        self.chats = self.chat_errors = 0
        self.recent.clear()
        self.phases.append(Phase(name, time.monotonic()))

    def end(self, *, broken_off: bool = False) -> None:
        """Ends the phase that runs, if one does."""
        if self.phases and self.phases[-1].ended_s is None:
            self.phases[-1].ended_s = time.monotonic()
            self.phases[-1].broken_off = broken_off

    def add_chat(self, record: ChatRecord) -> None:
        """Counts a chat that ended."""
        self.chats += 1
        self.chat_errors += record.error is not None
        self.recent.append(record)

    def describe_engine(self) -> str | None:
        """Window and requests in flight, summed over replicas, or why they are not known."""
        if self.status is None or not self.status.replicas:
            return f"not known: {self.status_problem}" if self.status_problem else None
        parts = []
        for name, label in (
            ("window", "window {:g}"),
            ("offline_running", "offline {:g} running"),
            ("online_running", "online {:g} running"),
            ("online_waiting", "{:g} waiting"),
        ):
            value = self.status.total(name)
            if value is not None:
                parts.append(label.format(value))
        kv_usage = self.status.total("kv_usage")
        if kv_usage is not None:
            parts.append(f"KV cache {100 * kv_usage / len(self.status.replicas):.0f} %")
        return " · ".join(parts) or None

    def describe_chats(self) -> str | None:
        """Chats of this phase and the median latencies of the last few; None before the first."""
        if not self.chats:
            return None
        parts = [f"{self.chats - self.chat_errors} answered, {self.chat_errors} failed"]
        recent = list(self.recent)
        ttft_ms = [record.ttft_ms for record in recent if record.ttft_ms is not None]
        tbt_ms = [gap for record in recent for gap in record.tbt_ms]
        if ttft_ms and tbt_ms:
            parts.append(
                f"last {len(ttft_ms)}: TTFT {statistics.median(ttft_ms):.0f} ms, TBT {statistics.median(tbt_ms):.0f} ms"
            )
        return " · ".join(parts)

    def describe_line(self) -> str:
        """One line with all of it, for a log."""
        parts = [format_clock(time.monotonic() - self.started_s)]
        parts.append(self.phases[-1].name if self.phases else "starting")
        if self.batch is not None:
            parts.append(f"batch {self.batch.completed}/{self.batch.total} done, {self.batch.failed} failed")
        parts += [part for part in (self.describe_chats(), self.describe_engine(), self.note) if part]
        return " | ".join(parts)


class DemoDisplay:
    """Shows a `DemoView` on `console` while it is entered as a context manager."""

    def __init__(self, console: Console, view: DemoView, plain_period_s: float = PLAIN_PERIOD_S) -> None:
        self._console = console
        self._view = view
        self._plain_period_s = plain_period_s
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(
            get_renderable=self.render, console=console, refresh_per_second=REFRESH_PER_S, transient=False
        )
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._print_lines, name="demo-display", daemon=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.end(broken_off=error is not None)
        if self._console.is_terminal:
            self._live.stop()
        else:
            self._ended.set()
            self._ticker.join(timeout=5)

    def announce(self, text: str) -> None:
        """Tells what is being done in this phase: the live view's note, or a line of its own."""
        self._view.note = text
        if not self._console.is_terminal:
            self._print(f"{format_clock(time.monotonic() - self._view.started_s)} | {text}")

    def begin(self, name: str) -> None:
        """Begins a phase of the view."""
        self._view.begin(name)
        if not self._console.is_terminal:
            self._print(f"{format_clock(time.monotonic() - self._view.started_s)} | {name}")

    def render(self) -> RenderableType:
        """The live view."""
        view, now_s = self._view, time.monotonic()
        rows = Table.grid(padding=(0, 1), expand=True)
        rows.add_column(width=1)
        rows.add_column(ratio=1)
        rows.add_column(justify="right")
        for phase in list(view.phases):
            running = phase.ended_s is None
            rows.add_row(
                self._spinner if running else _MARK_BROKEN_OFF if phase.broken_off else _MARK_DONE,
                Text(phase.name, style="bold" if running else "dim"),
                Text(format_clock((phase.ended_s or now_s) - phase.started_s), style="dim"),
            )
        details = Table.grid(padding=(0, 2))
        details.add_column(style="cyan", width=9)
        details.add_column()
        if view.batch is not None:
            details.add_row("batch", _render_batch(view.batch))
        for label, text in (("chat", view.describe_chats()), ("engine", view.describe_engine()), ("now", view.note)):
            if text:
                details.add_row(label, Text(text, overflow="ellipsis", no_wrap=True))
        parts: list[RenderableType] = [rows]
        if details.row_count:
            parts += [Text(""), details]
        return Panel(
            Group(*parts),
            title=Text(view.title, style="bold"),
            subtitle=Text(format_clock(now_s - view.started_s)),
            title_align="left",
            subtitle_align="right",
            border_style="cyan",
            padding=(1, 2),
        )

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _print_lines(self) -> None:
        while not self._ended.wait(self._plain_period_s):
            self._print(self._view.describe_line())


def format_clock(seconds: float) -> str:
    """Minutes and seconds: `2:05`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _render_batch(batch: BatchProgress) -> RenderableType:
    line = Table.grid(padding=(0, 2))
    ended = batch.completed + batch.failed
    line.add_row(
        ProgressBar(total=max(batch.total, 1), completed=ended, width=28),
        Text(f"{batch.completed} of {batch.total} done, {batch.failed} failed ({batch.status})"),
    )
    return line
