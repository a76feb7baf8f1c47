"""What a run of the fuzzers found, as a file and as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from loadtests.report import describe_machine, write_json

LONGEST_TEXT: Final = 2_000
"""Characters of an input or of a detail that a report keeps."""
MOST_FAULTS: Final = 50


class Fault(BaseModel):
    """One input that was not answered as it should be.

    Attributes:
        kind: What is wrong, such as `server error`, `stuck` or `traceback`.
        input: What was sent, shortened.
        detail: What came of it, shortened.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    input: str
    detail: str

    @classmethod
    def of(cls, kind: str, sent: object, detail: object) -> Fault:
        """A fault with its texts shortened."""
        return cls(kind=kind, input=_shorten(sent), detail=_shorten(detail))


class SurfaceReport(BaseModel):
    """A run against one surface.

    Attributes:
        surface, seed: As they were asked for; the same seed sends the same inputs, as far as answers do not decide what
            follows.
        inputs: How many were tried.
        duration_s: How long that took.
        outcomes: How many inputs ended how: statuses, or names of errors.
        slowest_ms: The longest time of a single input, where inputs are timed one by one.
        memory_growth_bytes: Of the server's resident memory after warm-up, where it was measured.
        faults: At most 50 of those that were found.
        fault_count: All of them.
    """

    surface: str
    seed: int
    inputs: int = 0
    duration_s: float = 0.0
    outcomes: dict[str, int] = Field(default_factory=dict)
    slowest_ms: float | None = None
    memory_growth_bytes: int | None = None
    faults: list[Fault] = Field(default_factory=list)
    fault_count: int = 0


class Findings:
    """What is gathered while a surface is tried."""

    def __init__(self) -> None:
        self.inputs = 0
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.memory_growth_bytes: int | None = None
        self.faults: list[Fault] = []
        self.fault_count = 0

    def note(self, outcome: str, took_s: float = 0.0) -> None:
        """One more input has ended."""
        self.inputs += 1
        self.outcomes[outcome] += 1
        self.slowest_s = max(self.slowest_s, took_s)

    def blame(self, fault: Fault) -> None:
        """An input was not answered as it should be."""
        self.fault_count += 1
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(fault)

    def to_report(self, surface: str, seed: int, duration_s: float) -> SurfaceReport:
        """All of it."""
        return SurfaceReport(
            surface=surface,
            seed=seed,
            inputs=self.inputs,
            duration_s=duration_s,
            outcomes=dict(self.outcomes.most_common()),
            slowest_ms=self.slowest_s * 1e3 if self.slowest_s else None,
            memory_growth_bytes=self.memory_growth_bytes,
            faults=self.faults,
            fault_count=self.fault_count,
        )


def write_reports(folder: Path, reports: Iterable[SurfaceReport]) -> None:
    """Writes `fuzz.json`."""
    surfaces = [report.model_dump(exclude_none=True) for report in reports]
    write_json(folder / "fuzz.json", {"machine": describe_machine(), "surfaces": surfaces})


def render(reports: Iterable[SurfaceReport]) -> Table:
    """A line for each surface."""
    table = Table("surface", "inputs", "time", "slowest", "faults", "outcomes")
    for report in reports:
        slowest = "" if report.slowest_ms is None else f"{report.slowest_ms:,.0f} ms"
        most = sorted(report.outcomes.items(), key=lambda one: -one[1])[:8]
        outcomes = ", ".join(f"{name} {count:,}" for name, count in most)
        time = f"{report.duration_s:,.0f} s"
        table.add_row(report.surface, f"{report.inputs:,}", time, slowest, f"{report.fault_count:,}", outcomes)
    return table


def _shorten(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    # Half surrogate pairs cannot be written to a file.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}... ({len(text):,} characters)"
