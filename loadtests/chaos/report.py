"""What is counted where things go wrong, and whether it is as it has to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Final

from pydantic import BaseModel, computed_field

MISSING: Final = "-"
TROUBLES: Final = (
    "lost",
    "twice",
    "wrong",
    "unfinished",
    "forgotten",
    "unanswered",
    "chats_unanswered",
    "chats_unexplained",
)
"""Fields of a report that have to be empty."""


class FaultRecord(BaseModel):
    """One fault that was injected.

    Attributes:
        number: Its place in the schedule of the seed.
        name: Of its type.
        at_s: Since the start of the faults.
        hold_s: Until it was healed.
        held_failed: Chats that failed and were held by what it has killed.
        others_failed: Chats that failed and were not.
        reasons: Of those, some.
        online_back_s: From its end until a chat was answered that began afterwards; None: none was in time.
        offline_back_s: Until offline requests were done; None: none were.
        processes_back_s: Until there were all processes again; None: there were not.
    """

    number: int
    name: str
    at_s: float
    hold_s: float
    held_failed: int = 0
    others_failed: int = 0
    reasons: list[str] = []
    online_back_s: float | None = None
    offline_back_s: float | None = None
    processes_back_s: float | None = None

    @property
    def well_s(self) -> float | None:
        """Until all of that was so; None: not in time."""
        times_s = (self.online_back_s, self.offline_back_s, self.processes_back_s)
        return None if None in times_s else max(time_s for time_s in times_s if time_s is not None)


class ChaosReport(BaseModel):
    """What is written to `chaos.json`.

    Attributes:
        seed: Of the schedule: the same one again has the same faults in the same order.
        engine: `light` or `real`.
        stack: What it consisted of.
        faults: In the order in which they came.
        not_injected: What could not be, and why; it counts for nothing.
        not_applicable: What cannot go wrong in this stack, and why.
        processes: How often a process of each kind was killed or stopped.
        chats, chats_held_failed, chats_others_failed, chats_unanswered: Online requests; those that failed and were
            held by what was killed; those that failed otherwise; and those that were not over after a minute.
        chats_unexplained: Those that failed before the first fault.
        longest_silence_s: In an answer that had an end.
        batches, requests: That were accepted, and checked.
        batches_withdrawn: Their creation was refused after they had been written, so they were cancelled.
        lost, twice, wrong, unfinished: As in `Verdict`.
        forgotten: Batches that were accepted and are not there.
        unanswered: Calls of the batch routes that were not answered for minutes, and batches that did not end.
        duration_s: From the first fault to the last recovery.
    """

    seed: int
    engine: str
    stack: list[str]
    faults: list[FaultRecord]
    not_injected: list[str]
    not_applicable: dict[str, str]
    processes: dict[str, int]
    chats: int
    chats_held_failed: int
    chats_others_failed: int
    chats_unanswered: list[str]
    chats_unexplained: list[str]
    longest_silence_s: float
    batches: int
    batches_withdrawn: int = 0
    requests: int
    lost: list[str]
    twice: list[str]
    wrong: list[str]
    unfinished: list[str]
    forgotten: list[str]
    unanswered: list[str]
    duration_s: float

    @computed_field  # type: ignore[prop-decorator] # of mypy: it is a property to it
    @property
    def problems(self) -> list[str]:
        """What is not as it has to be; empty where all contracts held."""
        found = [f"{name}: {one}" for name in TROUBLES for one in getattr(self, name)]
        for fault in self.faults:
            where = f"fault {fault.number} ({fault.name})"
            if fault.others_failed:
                found.append(f"{where}: {fault.others_failed} chats failed: {'; '.join(fault.reasons)}")
            if fault.well_s is None:
                found.append(f"{where}: not everything was well again in time")
        return found

    @property
    def is_clean(self) -> bool:
        """Whether all contracts held."""
        return not self.problems


Row = tuple[str, ...]
HEADINGS: Row = (
    "fault",
    "times",
    "chats held",
    "other chats failed",
    "next chat answered, s",
    "offline goes on, s",
    "processes back, s",
    "all well, at most, s",
)


def list_rows(faults: Sequence[FaultRecord]) -> list[Row]:
    """A row for each type of fault: sums, and medians of times."""
    times = Counter(fault.name for fault in faults)
    rows: list[Row] = []
    for name in sorted(times):
        own = [fault for fault in faults if fault.name == name]
        well = [fault.well_s for fault in own if fault.well_s is not None]
        rows.append(
            (
                name,
                str(times[name]),
                str(sum(fault.held_failed for fault in own)),
                str(sum(fault.others_failed for fault in own)),
                _show_median([fault.online_back_s for fault in own]),
                _show_median([fault.offline_back_s for fault in own]),
                _show_median([fault.processes_back_s for fault in own]),
                f"{max(well):.1f}" if well else MISSING,
            )
        )
    return rows


def render(report: ChaosReport) -> str:
    """The report as a page in Markdown."""
    verdict = "All contracts held." if report.is_clean else f"{len(report.problems)} problems, see below."
    lines = [
        f"# Chaos with seed {report.seed}, {report.engine} engine",
        "",
        f"{len(report.faults)} faults in {report.duration_s / 60:.1f} minutes. {verdict}",
        "",
        *(f"- {note}" for note in report.stack),
        "",
        *_make_table(HEADINGS, list_rows(report.faults)),
        "",
        "Times are medians, the last column is the longest, from the end of the fault on.",
        "",
        f"- online: {report.chats:,} chats; {report.chats_held_failed} failed that were held by what was killed, "
        f"{report.chats_others_failed} others; {len(report.chats_unanswered)} unanswered; "
        f"the longest silence in an answer was {report.longest_silence_s:.1f} s",
        f"- batches: {report.batches:,} with {report.requests:,} requests; lost {len(report.lost)}, "
        f"answered twice {len(report.twice)}, wrong {len(report.wrong)}, "
        f"not completed {len(report.unfinished)}, forgotten {len(report.forgotten)}, "
        f"unanswered {len(report.unanswered)}; refused and withdrawn {report.batches_withdrawn}",
        "- killed or stopped: " + ", ".join(f"{kind} {count}" for kind, count in sorted(report.processes.items())),
        *(f"- not applicable: {name}: {why}" for name, why in report.not_applicable.items()),
        *(f"- not injected: {one}" for one in report.not_injected),
    ]
    if report.problems:
        lines += ["", "## Problems", "", *(f"- {problem}" for problem in report.problems)]
    return "\n".join(lines) + "\n"


def _make_table(headings: Row, rows: Sequence[Row]) -> list[str]:
    lines = [headings, ("---", *("---:" for _ in headings[1:])), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _show_median(seconds: Sequence[float | None]) -> str:
    known = [one for one in seconds if one is not None]
    return f"{median(known):.1f}" if known else MISSING
