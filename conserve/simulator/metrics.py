"""What a simulation measures, in memory that does not grow: histograms of fixed bins, and sums."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

_LEAST_MS: Final = 0.1
_MOST_MS: Final = 3.6e6
_BIN: Final = math.log(1.002)
"""A bin is 0.2 % wide: percentiles are right to that."""
_BINS: Final = math.ceil(math.log(_MOST_MS / _LEAST_MS) / _BIN) + 1


class LatencyHistogram:
    """Times in milliseconds, from 0.1 ms to an hour."""

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * _BINS))
        self.count = 0
        self.sum_ms = 0.0

    def add(self, value_ms: float, count: int = 1) -> None:
        """Adds a time, so many times."""
        index = 0 if value_ms <= _LEAST_MS else min(int(math.log(value_ms / _LEAST_MS) / _BIN), _BINS - 1)
        self._counts[index] += count
        self.count += count
        self.sum_ms += value_ms * count

    def merge(self, other: LatencyHistogram) -> None:
        """Adds all of another one."""
        for index, count in enumerate(other._counts):
            if count:
                self._counts[index] += count
        self.count += other.count
        self.sum_ms += other.sum_ms

    def percentile(self, share: float) -> float:
        """The time that this share of all is not above, in ms; 0 without any."""
        wanted = share * self.count
        before = 0
        for index, count in enumerate(self._counts):
            if count and before + count >= wanted:
                part = min(1.0, max(0.0, (wanted - before) / count))
                return _LEAST_MS * math.exp((index + part) * _BIN)
            before += count
        return 0.0

    @property
    def mean_ms(self) -> float:
        """The mean; 0 without any."""
        return self.sum_ms / self.count if self.count else 0.0


@dataclass
class Metrics:
    """What happened in the measured window, in all replicas together.

    Attributes:
        start_s, end_s: The window. Requests count that arrive in it, iterations that end in it.
        ttft_slo_ms, tbt_slo_ms: Objectives that are counted.
        online_tokens, offline_prompt_tokens, offline_output_tokens: Computed for the first time.
        recomputed_tokens: Computed again after a preemption, and in vain where a stopped pass was thrown away.
        online_broken: Whose answer was broken off by a failure, and begun anew.
        online_good: Of those that came in the window, whose first token and, on average, further ones were in time.
        online_refused: By reason.
        iterations: Simulated, macro-steps counting for all that they stand for.
        steps: Decisions that were made.
    """

    start_s: float = 0.0
    end_s: float = math.inf
    ttft_slo_ms: float = math.inf
    tbt_slo_ms: float = math.inf
    ttft: LatencyHistogram = field(default_factory=LatencyHistogram)
    tbt: LatencyHistogram = field(default_factory=LatencyHistogram)
    online_requests: int = 0
    online_finished: int = 0
    online_broken: int = 0
    online_good: int = 0
    online_refused: Counter[str] = field(default_factory=Counter)
    ttft_in_time: int = 0
    tbt_in_time: int = 0
    online_tokens: int = 0
    offline_requests: int = 0
    offline_prompt_tokens: int = 0
    offline_output_tokens: int = 0
    recomputed_tokens: float = 0.0
    offline_preemptions: int = 0
    online_preemptions: int = 0
    stops: int = 0
    resumed_passes: int = 0
    saved_blocks: int = 0
    restored_blocks: int = 0
    iterations: int = 0
    steps: int = 0
    busy_s: float = 0.0

    def covers(self, at_s: float) -> bool:
        """Whether a time is in the window."""
        return self.start_s <= at_s < self.end_s

    def add_ttft(self, arrival_s: float, ttft_ms: float) -> None:
        """The first token of a request has come."""
        if self.start_s <= arrival_s < self.end_s:
            self.ttft.add(ttft_ms)
            self.online_requests += 1
            self.ttft_in_time += ttft_ms <= self.ttft_slo_ms

    def add_finished(self, arrival_s: float, first_token_s: float, now_s: float, output_tokens: int) -> None:
        """An online request has come to its end."""
        self.online_finished += self.covers(now_s)
        between_ms = (now_s - first_token_s) * 1e3 / (output_tokens - 1) if output_tokens > 1 else 0.0
        in_time = (first_token_s - arrival_s) * 1e3 <= self.ttft_slo_ms and between_ms <= self.tbt_slo_ms
        self.online_good += in_time and self.covers(arrival_s)

    def add_refused(self, at_s: float, reason: str) -> None:
        """An online request was refused."""
        self.online_refused[reason] += self.covers(at_s)

    def add_tbt(self, at_s: float, gap_ms: float, count: int) -> None:
        """So many tokens have come, each so long after the one before."""
        if self.start_s <= at_s < self.end_s:
            self.tbt.add(gap_ms, count)
            if gap_ms <= self.tbt_slo_ms:
                self.tbt_in_time += count

    @property
    def window_s(self) -> float:
        """Length of the window."""
        return self.end_s - self.start_s

    @property
    def offline_tokens(self) -> int:
        """Of prompts and outputs."""
        return self.offline_prompt_tokens + self.offline_output_tokens

    @property
    def offline_tokens_per_s(self) -> float:
        """Of prompts and outputs, all replicas together."""
        return self.offline_tokens / self.window_s

    def to_dict(self) -> dict[str, Any]:
        """The figures, named as in the benchmark's report."""
        quantiles = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        total = self.online_tokens + self.offline_tokens
        figures: dict[str, Any] = {
            "online_requests": self.online_requests,
            "offline_tokens_per_s": round(self.offline_tokens_per_s, 3),
            "offline_prompt_tokens_per_s": round(self.offline_prompt_tokens / self.window_s, 3),
            "offline_output_tokens_per_s": round(self.offline_output_tokens / self.window_s, 3),
            "total_tokens_per_s": round(total / self.window_s, 3),
            "offline_requests": self.offline_requests,
            "online_broken": self.online_broken,
            "offline_preemptions": self.offline_preemptions,
            "online_preemptions": self.online_preemptions,
            "stops": self.stops,
            "resumed_passes": self.resumed_passes,
            "recomputed_tokens": round(self.recomputed_tokens),
            "saved_blocks": self.saved_blocks,
            "restored_blocks": self.restored_blocks,
            "iterations": self.iterations,
        }
        for name, histogram, in_time in (
            ("ttft", self.ttft, self.ttft_in_time),
            ("tbt", self.tbt, self.tbt_in_time),
        ):
            if histogram.count:
                figures[f"{name}_ms"] = {key: round(histogram.percentile(share), 3) for key, share in quantiles}
                figures[f"{name}_slo_attainment"] = round(in_time / histogram.count, 4)
        return figures
