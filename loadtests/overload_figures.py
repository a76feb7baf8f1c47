"""What came of online load beyond capacity: from the records of its chats, and the offline tokens of engines."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from pydantic import BaseModel

from loadtests.chat_record import ChatRecord

LEAST_SHARE: Final = 0.9
"""Goodput at the highest load is to be this part of the best."""
REFUSAL: Final = "RateLimitError"
"""What the client of OpenAI raises for 429."""
BACK_SHARE: Final = 0.1
"""Offline work is back when it does this part of what it did at the lowest load, over `BACK_S`."""
BACK_S: Final = 1.0


class OfflineSample(NamedTuple):
    """Tokens that all engines have computed for offline work until a moment of the clock."""

    at_s: float
    tokens: float


@dataclass(frozen=True)
class Objectives:
    """When a chat counts as answered in time: its first token, and the mean time between the others."""

    ttft_ms: float
    tbt_ms: float

    def met_by(self, record: ChatRecord) -> bool:
        """Whether an answer came whole and in time."""
        if record.error is not None or record.ttft_ms is None or record.ttft_ms > self.ttft_ms:
            return False
        return not record.tbt_ms or sum(record.tbt_ms) / len(record.tbt_ms) <= self.tbt_ms


class OverloadPhase(BaseModel):
    """What came of a load, requests and tokens a second.

    Attributes:
        load: In multiples of the capacity.
        offered_per_s, goodput_per_s, refused_per_s: Chats that were meant to be sent within the window; those of them
            that were answered in time, and those that got 429.
        answered_per_s: Chats whose answers came to their ends within the window, in time or not.
        failed: Chats with any other end, and what it was.
        ttft_p99_ms, in_time: Of those that were let in: first tokens, and the share of them within the objective. One
            that failed counts as late, by the time that it took to fail.
        offline_tokens_per_s: What engines have computed beside them.
        send_lag_p99_ms: How far the client itself was behind.
    """

    load: float
    offered_per_s: float
    answered_per_s: float
    goodput_per_s: float
    refused_per_s: float
    failed: dict[str, int]
    ttft_p99_ms: float
    in_time: float
    offline_tokens_per_s: float
    send_lag_p99_ms: float = 0.0


class OverloadReport(BaseModel):
    """A whole run.

    Attributes:
        capacity_per_s: Chats a second that are answered when many clients ask all the time.
        refuses: Whether the application was told to refuse.
        phase_s, clients, seed: Of the plan.
        ttft_slo_ms, tbt_slo_ms: The objectives.
        phases: Loads in ascending order, and the lowest one again.
        offline_back_s: From the last arrival of the highest load until offline work is back, see `find_return`; None:
            it did not come back.
    """

    capacity_per_s: float
    refuses: bool | None
    phase_s: float
    clients: int
    seed: int
    ttft_slo_ms: float
    tbt_slo_ms: float
    phases: list[OverloadPhase]
    offline_back_s: float | None

    @property
    def share(self) -> float:
        """Goodput at the highest load as a part of the best."""
        best = max((phase.goodput_per_s for phase in self.phases), default=0.0)
        highest = max(self.phases, key=lambda phase: phase.load)
        return highest.goodput_per_s / best if best > 0 else 0.0

    @property
    def problems(self) -> list[str]:
        """What is not as it has to be."""
        found = []
        if self.share < LEAST_SHARE:
            found.append(f"goodput at the highest load is {self.share:.0%} of the best; it has to be {LEAST_SHARE:.0%}")
        for phase in self.phases:
            found += [f"{count} chats at {phase.load:g}x: {what}" for what, count in phase.failed.items()]
        if self.offline_back_s is None:
            found.append("offline work did not come back after the overload")
        return found


def make_phase(
    load: float,
    records: Sequence[ChatRecord],
    samples: Sequence[OfflineSample],
    objectives: Objectives,
    window_s: tuple[float, float],
) -> OverloadPhase:
    """The figures of the chats that were meant to be sent within a window of the clock, and of the engines in it."""
    begin_s, end_s = window_s
    length_s = end_s - begin_s
    inside = [record for record in records if begin_s <= record.intended_s < end_s]
    errors = Counter(record.error.split(":")[0] for record in inside if record.error is not None)
    refused = errors.pop(REFUSAL, 0)
    let_in = [record for record in inside if record.error is None or not record.error.startswith(REFUSAL)]
    first_ms = [_first_or_end_ms(record) for record in let_in]
    in_time = sum(
        record.error is None and first <= objectives.ttft_ms for record, first in zip(let_in, first_ms, strict=True)
    )
    return OverloadPhase(
        load=load,
        offered_per_s=len(inside) / length_s,
        answered_per_s=sum(one.error is None and begin_s <= one.ended_s < end_s for one in records) / length_s,
        goodput_per_s=sum(objectives.met_by(record) for record in inside) / length_s,
        refused_per_s=refused / length_s,
        failed=dict(errors),
        ttft_p99_ms=_percentile(first_ms),
        in_time=in_time / len(let_in) if let_in else 0.0,
        offline_tokens_per_s=count_growth(samples, begin_s, end_s) / length_s,
        send_lag_p99_ms=_percentile([record.send_lag_ms for record in inside]),
    )


def count_growth(samples: Sequence[OfflineSample], begin_s: float, end_s: float) -> float:
    """Tokens between two moments, each as of the last sample before it.

    Where the count falls a replica has gone, and what came since is that of the next sample on.
    """
    first, last = (max(0, bisect_right(samples, at_s, key=_when) - 1) for at_s in (begin_s, end_s))
    return sum(max(0.0, after.tokens - before.tokens) for before, after in pairwise(samples[first : last + 1]))


def find_return(samples: Sequence[OfflineSample], since_s: float, usual_per_s: float) -> float | None:
    """Seconds from a moment until offline work does a part of what it usually does; None: it never does.

    What is counted in the first sample was done before it, so a second from there on is looked at.
    """
    least = BACK_SHARE * usual_per_s * BACK_S
    later = [one for one in samples if one.at_s > since_s]
    for begin in later:
        if begin.at_s + BACK_S > later[-1].at_s:
            return None
        if count_growth(later, begin.at_s, begin.at_s + BACK_S) > max(least, 0.0):
            return begin.at_s + BACK_S - since_s
    return None


def _when(sample: OfflineSample) -> float:
    return sample.at_s


def _first_or_end_ms(record: ChatRecord) -> float:
    if record.error is None and record.ttft_ms is not None:
        return record.ttft_ms
    return (record.ended_s - record.intended_s) * 1e3


def _percentile(values: Sequence[float]) -> float:
    """The 99th; 0 of none."""
    found = float(np.percentile(values, 99)) if values else 0.0
    return found if math.isfinite(found) else 0.0
