"""The benchmark's workloads in virtual time: online arrivals, offline backlog, and the sizes of the engine.

Their online load is a share of what one replica can serve: requests a second that it completes when it always has as
many online requests as it has slots for, and nothing else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from conserve.simulator.engine_costs import EngineCosts
from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.trace_statistics import STATISTICS, Kind, generate_trace
from conserve.simulator.traces import TraceRequest
from conserve.simulator.workload import Arrival, OfflineShape

SATURATING_REQUESTS: Final = 512
"""Of the online requests' lengths, those that the capacity is found with."""


@dataclass(frozen=True)
class Scenario:
    """One workload.

    Attributes:
        name: As in the benchmark.
        online_share: Mean online load as a share of what a replica can serve.
        offline: The backlog.
        offline_in_flight: Offline requests in a replica at any time.
        limits: Sizes of the engine.
        kind: Of the trace that arrivals and lengths are like; None for a Poisson process with the lengths below.
        prompt_tokens, output_tokens: Online lengths, drawn evenly.
        burst_cv: Variation of the gaps between arrivals, in place of the trace's.
        tide_ratio: The rate goes once from low to high and back, this many times as high.
        kv_blocks: Of the engine, where the GPU's memory is not all for it.
        duration_s: Of the measured window.
    """

    name: str
    online_share: float
    offline: OfflineShape
    offline_in_flight: int = 64
    limits: EngineLimits = field(default_factory=EngineLimits)
    kind: Kind | None = "conv"
    prompt_tokens: tuple[int, int] = (100, 400)
    output_tokens: tuple[int, int] = (8, 32)
    burst_cv: float | None = None
    tide_ratio: float | None = None
    kv_blocks: int | None = None
    duration_s: float = 300.0

    def fit(self, costs: EngineCosts) -> EngineCosts:
        """The engine as this workload has it."""
        if self.kv_blocks is None or self.kv_blocks >= costs.kv_blocks:
            return costs
        return costs.model_copy(update={"kv_blocks": self.kv_blocks})

    def draw_online(
        self, rate_per_s: float, duration_s: float, seed: int, trace: Sequence[TraceRequest] = ()
    ) -> list[Arrival]:
        """Online requests of so many seconds at a mean rate.

        Args:
            rate_per_s: Of all replicas together.
            duration_s: How long.
            seed: Decides them.
            trace: Real requests to take lengths and arrivals from; without them they are generated.
        """
        count = max(2, math.ceil(1.05 * rate_per_s * duration_s))
        found = self._draw_requests(count, seed, trace)
        end_s = found[-1].arrival_s or 1.0
        factor = len(found) / rate_per_s / end_s
        times = [request.arrival_s * factor for request in found]
        if self.burst_cv is not None:
            times = list(itertools.islice(_draw_gamma(rate_per_s, self.burst_cv, seed), count))
        if self.tide_ratio is not None:
            times = _bend(times, duration_s, self.tide_ratio)
        return [
            Arrival(at_s, request.prompt_tokens, request.output_tokens)
            for at_s, request in zip(times, found, strict=True)
            if at_s < duration_s
        ]

    def find_capacity(self, costs: EngineCosts, run: Callable[[Scenario, Sequence[Arrival]], float]) -> float:
        """Requests a second that a replica serves when it always has as many as it has slots for.

        Args:
            costs: Of its engine.
            run: Simulates online requests alone, and returns how many seconds they took.
        """
        found = self._draw_requests(SATURATING_REQUESTS, 0, ())
        arrivals = [Arrival(0.0, request.prompt_tokens, request.output_tokens) for request in found]
        return len(arrivals) / run(self, arrivals)

    def _draw_requests(self, count: int, seed: int, trace: Sequence[TraceRequest]) -> list[TraceRequest]:
        if trace:
            start = int(np.random.default_rng([seed, 8]).integers(0, max(1, len(trace) - count)))
            window = [trace[(start + number) % len(trace)] for number in range(count)]
            if start + count <= len(trace):
                origin_s = window[0].arrival_s
                return [TraceRequest(one.arrival_s - origin_s, one.prompt_tokens, one.output_tokens) for one in window]
            generator = np.random.default_rng([seed, 9])
            times = np.cumsum(generator.exponential(1.0, count)).tolist()
            return [
                TraceRequest(at_s, one.prompt_tokens, one.output_tokens)
                for at_s, one in zip(times, window, strict=True)
            ]
        if self.kind is not None:
            return generate_trace(STATISTICS[self.kind], count, seed)
        generator = np.random.default_rng([seed, 5])
        times = np.cumsum(generator.exponential(1.0, count)).tolist()
        prompts = generator.integers(*self.prompt_tokens, count, endpoint=True).tolist()
        outputs = generator.integers(*self.output_tokens, count, endpoint=True).tolist()
        return [TraceRequest(*each) for each in zip(times, prompts, outputs, strict=True)]


def _draw_gamma(rate_per_s: float, cv: float, seed: int) -> Iterator[float]:
    generator = np.random.default_rng([seed, 7])
    shape = 1.0 / (cv * cv)
    scale = 1.0 / (rate_per_s * shape)
    return itertools.accumulate(float(generator.gamma(shape, scale)) for _ in itertools.count())


def _bend(times: Sequence[float], duration_s: float, ratio: float) -> list[float]:
    """Moves arrivals so that their rate is lowest at both ends and `ratio` times as high in between."""
    swing = (ratio - 1.0) / (ratio + 1.0)
    steps = np.linspace(0.0, 1.0, 1_000)
    shares = steps - swing * np.sin(2 * np.pi * steps) / (2 * np.pi)
    bent: list[float] = (np.interp(np.array(times) / duration_s, shares, steps) * duration_s).tolist()
    return bent


_SUMMARIES: Final = OfflineShape((4_000, 8_000), (128, 256))
_ALL: Final = (
    Scenario("chat", 0.3, _SUMMARIES),
    Scenario("bursty", 0.2, _SUMMARIES, kind="code"),
    Scenario("tide", 0.33, _SUMMARIES, tide_ratio=10.0),
    Scenario(
        "pressure",
        0.2,
        OfflineShape((4_000, 5_000), (1_024, 1_536)),
        offline_in_flight=32,
        limits=EngineLimits(max_num_seqs=16),
        burst_cv=2.0,
        kv_blocks=6_000,
    ),
    Scenario("interrupt", 0.04, OfflineShape((4_000, 8_000), (8, 16)), kind=None),
    Scenario(
        "prefix",
        0.3,
        OfflineShape((256, 768), (16, 64), groups=16, prefix_tokens=12_288),
        offline_in_flight=256,
        kv_blocks=6_000,
    ),
)
SCENARIOS: Final = {scenario.name: scenario for scenario in _ALL}
