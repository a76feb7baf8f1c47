"""How a phase of a load test went on: rates over time, from what clients recorded and from readings of the status."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from loadtests.engine_status import StatusReport
from loadtests.front.record_file import Records

COUNTERS: Final = ("offline_prompt_tokens", "offline_output_tokens")


@dataclass(frozen=True)
class Phase:
    """One run of locust.

    Attributes:
        name: As in the report file.
        records: What the clients recorded.
        duration_s: Seconds from `records.start_s` in which chats were due.
        readings: Of the status, from before the start to the end; on the clock of the records.
    """

    name: str
    records: Records
    duration_s: float
    readings: list[StatusReport] = field(default_factory=list)

    @property
    def end_s(self) -> float:
        """When the last chats were due."""
        return self.records.start_s + self.duration_s


@dataclass(frozen=True)
class Harvest:
    """Offline tokens of a window, by the counters of the engines."""

    duration_s: float
    prompt_tokens: float
    output_tokens: float

    @property
    def tokens_per_s(self) -> float:
        """Prompt and output together."""
        return (self.prompt_tokens + self.output_tokens) / self.duration_s


def measure_harvest(phase: Phase) -> Harvest | None:
    """From the first reading with a running offline request to the end of the phase; None if there is too little.

    The time in which a batch is looked through before its work begins is no part of it.
    """
    window = [reading for reading in phase.readings if reading.read_s <= phase.end_s]
    begun = next((index for index, one in enumerate(window) if one.total("offline_running")), None)
    if begun is None:
        return None
    before, after = window[begun], window[-1]
    prompt_tokens, output_tokens = (_growth(before, after, name) for name in COUNTERS)
    if prompt_tokens is None or output_tokens is None or not prompt_tokens + output_tokens:
        return None
    return Harvest(after.read_s - before.read_s, prompt_tokens, output_tokens)


def offline_rates(readings: Sequence[StatusReport], step_s: float) -> tuple[list[float], list[float]]:
    """Times and offline tokens/s between readings at least `step_s` apart; where a counter fell there is no point."""
    chosen: list[StatusReport] = []
    for reading in readings:
        if not chosen or reading.read_s - chosen[-1].read_s >= step_s:
            chosen.append(reading)
    times_s, rates = [], []
    for before, after in pairwise(chosen):
        grown = [_growth(before, after, name) for name in COUNTERS]
        if grown[0] is not None and grown[1] is not None:
            times_s.append((before.read_s + after.read_s) / 2)
            rates.append((grown[0] + grown[1]) / (after.read_s - before.read_s))
    return times_s, rates


def kv_usage(readings: Iterable[StatusReport]) -> tuple[list[float], list[float]]:
    """Times and the mean share of the KV cache in use."""
    times_s, shares = [], []
    for reading in readings:
        total = reading.total("kv_usage")
        if total is not None:
            times_s.append(reading.read_s)
            shares.append(total / len(reading.replicas))
    return times_s, shares


def chats_in_flight(records: Records, end_s: float) -> tuple[list[float], list[int]]:
    """Times at which the number of unanswered chats changes, and the number from then on; from the start to `end_s`."""
    changes = [(record.intended_s, 1) for record in records.chats] + [(record.ended_s, -1) for record in records.chats]
    times_s, counts, count = [records.start_s], [0], 0
    for time_s, change in sorted(changes):
        if time_s > end_s:
            break
        count += change
        times_s.append(time_s)
        counts.append(count)
    return [*times_s, end_s], [*counts, count]


def _growth(before: StatusReport, after: StatusReport, name: str) -> float | None:
    if {one.replica_id for one in before.replicas} != {one.replica_id for one in after.replicas}:
        return None
    first, last = before.total(name), after.total(name)
    # A counter that fell belongs to an engine that was started again.
    return last - first if first is not None and last is not None and last >= first else None
