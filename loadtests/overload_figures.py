"""What came of online load beyond capacity: from the records of its chats, and the offline tokens of engines."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from pydantic import BaseModel

from loadtests.chat_record import ChatRecord

LEAST_SHARE: Final = 0.9
"""Goodput at the highest load is to be this part of the best."""
REFUSAL: Final = "RateLimitError"
"""What the client of OpenAI raises for 429."""


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
        offered_per_s, answered_per_s, goodput_per_s, refused_per_s: Chats that were meant to be sent, were answered,
            were answered in time, and got 429.
        failed: Chats with any other end, and what it was.
        ttft_p99_ms, in_time: Of those that were let in: their first tokens, and the share of them within the objective.
        offline_tokens_per_s: What engines have computed beside them.
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


class OverloadReport(BaseModel):
    """A whole run.

    Attributes:
        capacity_per_s: Chats a second that are answered when many clients ask all the time.
        ttft_slo_ms, tbt_slo_ms: The objectives.
        phases: In the order in which they were.
        offline_back_s: From the last arrival of the highest load until offline tokens were computed again; None: not
            while the low load lasted that came after it.
    """

    capacity_per_s: float
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
    inside = [record for record in records if begin_s <= record.intended_s < end_s]
    answered = [record for record in inside if record.error is None]
    errors = Counter(record.error.split(":")[0] for record in inside if record.error is not None)
    first_ms = [record.ttft_ms for record in answered if record.ttft_ms is not None]
    length_s = end_s - begin_s
    return OverloadPhase(
        load=load,
        offered_per_s=len(inside) / length_s,
        answered_per_s=len(answered) / length_s,
        goodput_per_s=sum(objectives.met_by(record) for record in inside) / length_s,
        refused_per_s=errors.pop(REFUSAL, 0) / length_s,
        failed=dict(errors),
        ttft_p99_ms=float(np.percentile(first_ms, 99)) if first_ms else 0.0,
        in_time=sum(one <= objectives.ttft_ms for one in first_ms) / len(first_ms) if first_ms else 0.0,
        offline_tokens_per_s=(_tokens_at(samples, end_s) - _tokens_at(samples, begin_s)) / length_s,
    )


def find_return(samples: Sequence[OfflineSample], since_s: float) -> float | None:
    """Seconds from a moment until more offline tokens were counted than at it; None: there never were."""
    before = _tokens_at(samples, since_s)
    later = (one.at_s for one in samples if one.at_s > since_s and one.tokens > before)
    return next((at_s - since_s for at_s in later), None)


def _tokens_at(samples: Sequence[OfflineSample], at_s: float) -> float:
    """As of the last sample before."""
    number = bisect_right(samples, at_s, key=lambda one: one.at_s)
    return samples[max(0, number - 1)].tokens if samples else 0.0
