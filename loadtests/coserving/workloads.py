"""The benchmark's workloads: engine settings, online arrivals and an endless backlog of offline work.

Each comes in a size for a 2-core CPU, with the lengths of its trace divided by eight, and in one for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from conserve.config import EngineSettings
from conserve.simulator.workload import OfflineShape
from loadtests import arrivals
from loadtests.coserving.prompts import PromptMaker
from loadtests.trace_source import GENERATED, Kind, TraceSource
from loadtests.traces import TraceRequest, scale_lengths, scale_time
from loadtests.window_shape import bend, turn

Size = Literal["cpu", "gpu"]
FIRST_PROMPT_SHARE: Final = 0.25
"""Length of the prompts that the engine begins with, as a share: it is at its usual work sooner."""
SATURATING_REQUESTS: Final = 200
"""Requests of a trace that the capacity is measured with, over and over."""


@dataclass(frozen=True)
class BenchRequest:
    """A request that is ready to be sent; online ones are due at `due_s` after the start of the arrivals."""

    prompt: tuple[int, ...]
    output_tokens: int
    due_s: float = 0.0


@dataclass(frozen=True)
class OnlineShape:
    """Online requests of a workload without a trace: they come at random, as a Poisson process.

    Lengths in tokens are drawn evenly from (shortest, longest).
    """

    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]


@dataclass(frozen=True)
class Workload:
    """One workload in one size.

    Attributes:
        engine: What both engines are started with.
        kind: Trace of the online requests; None for one without a trace.
        online_share: Mean online load as a share of what the stock engine can serve.
        offline: The backlog.
        offline_in_flight: Offline requests in the engine at any time, running or waiting.
        decoding_share: Of the sequences that the engine runs, those whose prompt is computed, at any time on average.
        fill_s: Seconds of offline work before anything is measured.
        lead_s: Seconds of online requests before that; engines fill themselves faster without them, and not all alike.
        length_scale: Lengths of the trace are multiplied by this.
        burst_cv: Online arrivals come in bursts of this variation of their gaps, in place of the trace's arrivals.
        tide_ratio: The online rate goes once from low to high and back, this many times as high.
        duration_s: Length of a run's measured window, if it gives enough online requests.
        online: The online requests, in place of a trace's.
        further_runs: What it is measured with besides the six runs.
    """

    name: str
    size: Size
    engine: EngineSettings
    kind: Kind | None
    online_share: float
    offline: OfflineShape
    offline_in_flight: int
    decoding_share: float
    fill_s: float
    lead_s: float
    length_scale: float
    burst_cv: float | None = None
    tide_ratio: float | None = None
    duration_s: float = 120.0
    online: OnlineShape | None = None
    further_runs: tuple[str, ...] = ()

    def name_source(self, source: TraceSource) -> str:
        """Where the online requests come from.

        Raises:
            TraceError: there is no trace for them.
        """
        return GENERATED if self.kind is None else source.name(self.kind)

    def check_source(self, source: TraceSource, seed: int) -> None:
        """Looks whether the trace is there and long enough.

        Raises:
            TraceError: it is not.
        """
        self._draw(source, SATURATING_REQUESTS, seed)

    def _draw(self, source: TraceSource, requests: int, seed: int) -> list[TraceRequest]:
        if self.kind is not None:
            return source.draw(self.kind, requests, seed)
        if self.online is None:
            raise ValueError(f"workload {self.name}: has neither a trace nor a shape of online requests")
        generator = np.random.default_rng([seed, 5])
        arrivals_s = np.cumsum(generator.exponential(1.0, requests))
        lengths = [
            generator.integers(*limits, requests, endpoint=True)
            for limits in (self.online.prompt_tokens, self.online.output_tokens)
        ]
        return [
            TraceRequest(float(arrival_s - arrivals_s[0]), int(prompt), int(output))
            for arrival_s, prompt, output in zip(arrivals_s, *lengths, strict=True)
        ]

    def draw_online(
        self, source: TraceSource, prompts: PromptMaker, rate_per_s: float, duration_s: float, seed: int
    ) -> list[BenchRequest]:
        """Online requests that are due within `duration_s`, at a mean rate of `rate_per_s`; the seed decides which.

        Raises:
            TraceError: there is no trace for them.
        """
        window = self._draw(source, max(2, round(rate_per_s * duration_s)), seed)
        if self.burst_cv is not None:
            bursts = arrivals.gamma(rate_per_s, self.burst_cv, seed)
            window = [replace(request, arrival_s=at_s) for request, at_s in zip(window, bursts, strict=False)]
        window = turn(scale_time(window, rate_per_s), np.random.default_rng([seed, 4]))
        if self.tide_ratio is not None:
            window = bend(window, duration_s, self.tide_ratio)
        generator = np.random.default_rng([seed, 1])
        requests = [
            self._make_online(request, prompts, generator) for request in scale_lengths(window, self.length_scale)
        ]
        return [request for request in requests if request.due_s < duration_s]

    def draw_offline(self, prompts: PromptMaker, seed: int) -> Iterator[BenchRequest]:
        """Endless offline requests.

        The first ones, as many as usually decode, have short prompts and outputs of every length up to their own: the
        engine soon is as one that has been at work for long, with some that decode and do not end together.
        """
        generator = np.random.default_rng([seed, 2])
        shape, started = self.offline, 0
        while True:
            for group in generator.permutation(max(1, shape.groups)):
                prompt_tokens = int(generator.integers(*shape.prompt_tokens, endpoint=True))
                output_tokens = int(generator.integers(*shape.output_tokens, endpoint=True))
                prefix = prompts.make_shared(seed, int(group), shape.prefix_tokens) if shape.groups else ()
                if started < round(self.decoding_share * self.engine.max_num_seqs):
                    started += 1
                    prompt_tokens = max(1, round(prompt_tokens * FIRST_PROMPT_SHARE))
                    output_tokens = int(generator.integers(1, output_tokens, endpoint=True))
                yield BenchRequest(prefix + prompts.make(generator, prompt_tokens), output_tokens)

    def draw_saturating(self, source: TraceSource, prompts: PromptMaker, seed: int) -> Iterator[BenchRequest]:
        """Endless requests of the online lengths, for measuring what the engine can serve.

        Raises:
            TraceError: there is no trace for them.
        """
        generator = np.random.default_rng([seed, 3])
        window = scale_lengths(self._draw(source, SATURATING_REQUESTS, seed), self.length_scale)
        while True:
            for request in window:
                yield self._make_online(request, prompts, generator)

    def _make_online(self, request: TraceRequest, prompts: PromptMaker, generator: np.random.Generator) -> BenchRequest:
        limit = self.engine.max_model_len
        if limit is None:
            raise ValueError(f"workload {self.name}: engine.max_model_len must be set")
        output_tokens = min(request.output_tokens, limit // 2)
        prompt_tokens = min(request.prompt_tokens, limit - output_tokens)
        prompt = prompts.make_chained(generator, prompt_tokens, request.prefix_ids, self.length_scale)
        return BenchRequest(prompt, output_tokens, request.arrival_s)
