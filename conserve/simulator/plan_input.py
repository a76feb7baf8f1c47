"""What a capacity plan is for: online requests, objectives, a GPU, and a backlog of batch work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.roofline import GpuProfile
from conserve.simulator.workload import Arrival, OfflineShape

BUSIEST_S: Final = 600.0
"""How many replicas it takes is found in the busiest time of this length."""


@dataclass(frozen=True)
class PlanInput:
    """What is planned for.

    Attributes:
        arrivals: Online requests, in the order of time, of all replicas together.
        duration_s: Of the arrivals; they stand for all other times.
        ttft_slo_ms, tbt_slo_ms: Objectives of P99.
        profile: GPU and model.
        batch: Requests of the backlog.
        batch_requests: How many.
        limits: Sizes of the engines.
        seed: Decides everything random.
        dollars_per_hour: Of one replica.
    """

    arrivals: Sequence[Arrival]
    duration_s: float
    ttft_slo_ms: float
    tbt_slo_ms: float
    profile: GpuProfile
    batch: OfflineShape
    batch_requests: int
    limits: EngineLimits
    seed: int = 1
    dollars_per_hour: float | None = None

    @property
    def rate_per_s(self) -> float:
        """Mean online requests a second."""
        return len(self.arrivals) / self.duration_s

    @property
    def burst_cv(self) -> float:
        """Standard deviation over mean of the gaps between arrivals."""
        times = np.array([arrival.arrival_s for arrival in self.arrivals])
        gaps = np.diff(times)
        return float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.mean() > 0 else 0.0

    @property
    def price(self) -> float:
        """Dollars an hour of one replica."""
        return self.profile.dollars_per_hour if self.dollars_per_hour is None else self.dollars_per_hour

    @property
    def backlog_tokens(self) -> float:
        """Prompt and output tokens of the backlog."""
        return self.batch_requests * self.batch.mean_tokens


def cut_busiest(given: PlanInput) -> PlanInput:
    """The part of at most `BUSIEST_S` seconds in which most tokens come: replicas are there for the peak."""
    if given.duration_s <= BUSIEST_S:
        return given
    starts = [number * BUSIEST_S / 2 for number in range(int(2 * given.duration_s / BUSIEST_S) - 1)]
    work = dict.fromkeys(starts, 0)
    for arrival in given.arrivals:
        last = int(2 * arrival.arrival_s / BUSIEST_S)
        for number in (last - 1, last):
            if (start_s := number * BUSIEST_S / 2) in work:
                work[start_s] += arrival.prompt_tokens + arrival.output_tokens
    start_s = max(starts, key=lambda each: work[each])
    arrivals = [
        replace(arrival, arrival_s=arrival.arrival_s - start_s)
        for arrival in given.arrivals
        if start_s <= arrival.arrival_s < start_s + BUSIEST_S
    ]
    return replace(given, arrivals=arrivals, duration_s=BUSIEST_S)


def redraw(given: PlanInput, cv: float) -> list[Arrival]:
    """The same requests at other times: gaps that vary by so much."""
    generator = np.random.default_rng([given.seed, 12])
    shape = 1.0 / (cv * cv)
    gaps = generator.gamma(shape, 1.0 / (given.rate_per_s * shape), len(given.arrivals))
    times = np.cumsum(gaps) * (given.duration_s / max(1e-9, float(gaps.sum())))
    return [replace(arrival, arrival_s=float(at_s)) for arrival, at_s in zip(given.arrivals, times, strict=True)]


def draw_requests(
    rate_per_s: float, duration_s: float, prompt_tokens: float, output_tokens: float, burst_cv: float, seed: int
) -> list[Arrival]:
    """Online requests of mean lengths; lengths vary as an exponential does, which is near those of real chats.

    Args:
        rate_per_s: Mean rate.
        duration_s: How long.
        prompt_tokens: Mean length of a prompt.
        output_tokens: Mean length of an answer.
        burst_cv: Standard deviation over mean of the gaps.
        seed: Decides them.
    """
    generator = np.random.default_rng([seed, 13])
    shape = 1.0 / (burst_cv * burst_cv)

    def draw() -> Iterator[Arrival]:
        at_s = 0.0
        while True:
            at_s += float(generator.gamma(shape, 1.0 / (rate_per_s * shape)))
            prompt, output = generator.exponential((prompt_tokens, output_tokens)).tolist()
            yield Arrival(at_s, max(1, round(prompt)), max(1, round(output)))

    return list(itertools.takewhile(lambda arrival: arrival.arrival_s < duration_s, draw()))
