"""What the runs of the co-serving benchmark leave behind: plain records, read by the report.

All times are seconds from the start of the run they belong to. A run begins with offline work alone and then some
online requests (both only fill the engine); what is measured lies in the window from `window_start_s` to
`window_end_s`, at whose end the online arrivals end. Rates are over the window: neither fill nor drain is in them.
Latencies are those of the online requests that were due within the window, whenever they were answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

from conserve.engine.iteration_log import Iteration
from conserve.engine.options import Objective
from conserve.engine.page import Counters

ONLINE_ONLY: Final = "online-only"
OFFLINE_ONLY: Final = "offline-only"
STOCK_COSERVE: Final = "stock-coserve"
STOCK_TUNED: Final = "stock-tuned"
CEILING: Final = "ceiling"
CONSERVE: Final = "conserve"
RUNS: Final = (ONLINE_ONLY, OFFLINE_ONLY, STOCK_COSERVE, STOCK_TUNED, CEILING, CONSERVE)
"""The six runs. An ablation is named `no-<mechanism>`."""
RELAXED: Final = "conserve-relaxed"
"""`conserve` with objectives that a tuned stock engine misses by far (`plan.relax_objective`), where asked for."""
ABLATION_PREFIX: Final = "no-"
NO_SAFEPOINTS: Final = "no-safepoints"
NO_RESUME: Final = "no-resume"
NO_CHECKPOINTS: Final = "no-checkpoints"
FULL_PASSES: Final = "full-passes"
FULL_PASSES_NO_SAFEPOINTS: Final = "full-passes-no-safepoints"
"""Ours, with iterations without online requests as large as the batch, whatever the objectives."""
ALONE: Final = "alone"
ALONE_NO_SAFEPOINTS: Final = "alone-no-safepoints"
"""Ours, offline work alone, in full iterations."""
OFFLINE_RUNS: Final = (OFFLINE_ONLY, ALONE, ALONE_NO_SAFEPOINTS)
"""Runs without online requests."""


class OutputEvent(NamedTuple):
    """Tokens that came out of the engine together (one, unless the front was behind and joined some)."""

    at_s: float
    tokens: int


@dataclass(frozen=True)
class OnlineRecord:
    """One online request.

    Attributes:
        intended_s: When it was due to be sent; latency counts from here, so a late client shows as latency.
        sent_s: When it was sent.
        events: Its outputs.
        prompt_tokens: Length of its prompt.
        output_tokens: Tokens it was told to produce.
        ended_s: When it was complete, had failed or was given up.
        error: What went wrong, or None.
    """

    intended_s: float
    sent_s: float
    events: tuple[OutputEvent, ...]
    prompt_tokens: int
    output_tokens: int
    ended_s: float
    error: str | None = None

    @property
    def ttft_ms(self) -> float | None:
        """From the time it was due to its first token, if any came."""
        return (self.events[0].at_s - self.intended_s) * 1e3 if self.events else None

    @property
    def tbt_ms(self) -> tuple[float, ...]:
        """Gaps between outputs. One gap an output, however many tokens it carries: that is what a reader sees."""
        return tuple((later.at_s - earlier.at_s) * 1e3 for earlier, later in pairwise(self.events))

    @property
    def send_lag_ms(self) -> float:
        """How far the client itself was behind."""
        return (self.sent_s - self.intended_s) * 1e3


@dataclass(frozen=True)
class OfflineRecord:
    """One offline request.

    Attributes:
        started_s: When it was given to the engine.
        events: Its outputs; the first one says that its prompt is computed.
        prompt_tokens: Length of its prompt.
        output_tokens: Tokens it was told to produce.
        ended_s: When it was complete or had failed; None if it was cancelled when the window ended.
        error: What went wrong, or None.
    """

    started_s: float
    events: tuple[OutputEvent, ...]
    prompt_tokens: int
    output_tokens: int
    ended_s: float | None
    error: str | None = None


@dataclass(frozen=True)
class TokenRates:
    """Tokens a second, each counted once."""

    prompt_per_s: float
    output_per_s: float

    @property
    def total_per_s(self) -> float:
        """Prompt and output together."""
        return self.prompt_per_s + self.output_per_s


@dataclass(frozen=True)
class RunResult:
    """One run.

    Attributes:
        run: One of `RUNS`, an ablation, or another one of those named above.
        repeat: From 1.
        workload: Name of the workload.
        seed: Of arrivals, lengths and prompts; the same for all runs of a repeat.
        mode: The engine: `stock` or `conserve`.
        window_start_s, window_end_s: What is measured.
        online: All online requests, in the order in which they were due; some were due before the window.
        offline: All offline requests, in the order in which they were given to the engine.
        counters_before, counters_after: The scheduler's counters when the window began and ended.
        peak_memory_bytes: Of the engine's processes since they were started.
        knobs: Settings changed for this run, by name of `conserve.engine.page.Knobs`; without infinite ones.
        objective: What the scheduler was told to keep; None without objectives, as in stock runs and the ceiling.
        iterations: Of our engine, with times of the run.
    """

    run: str
    repeat: int
    workload: str
    seed: int
    mode: str
    window_start_s: float
    window_end_s: float
    online: tuple[OnlineRecord, ...]
    offline: tuple[OfflineRecord, ...]
    counters_before: Counters
    counters_after: Counters
    peak_memory_bytes: int
    knobs: dict[str, float] = field(default_factory=dict)
    objective: Objective | None = None
    iterations: tuple[Iteration, ...] = ()

    @property
    def window_s(self) -> float:
        """Length of the window."""
        return self.window_end_s - self.window_start_s

    @property
    def measured_online(self) -> list[OnlineRecord]:
        """The online requests that were due within the window, failed ones included."""
        return [record for record in self.online if self.window_start_s <= record.intended_s < self.window_end_s]

    @property
    def ttft_groups(self) -> list[list[float]]:
        """TTFT in ms of each measured request without an error, as groups of one (see `latency.percentile_ratio`)."""
        values = [record.ttft_ms for record in self.measured_online if record.error is None]
        return [[value] for value in values if value is not None]

    @property
    def tbt_groups(self) -> list[list[float]]:
        """TBT in ms, one group a measured request without an error."""
        return [list(record.tbt_ms) for record in self.measured_online if record.error is None and record.tbt_ms]

    @property
    def offline_rates(self) -> TokenRates:
        """Offline tokens a second over the window.

        Those of prompts as the scheduler counts them, iteration by iteration, found in the prefix cache or computed for
        the first time: in a window there are few prompts, and one more or less at its ends would be a large part.
        """
        rates, counters = self._rates(self.offline), self.counters
        prompt = counters.offline_prefill_tokens + counters.offline_cached_tokens - counters.offline_recomputed_tokens
        # From the end of an iteration to the end of another: a part of one cannot be counted.
        return TokenRates(max(0.0, prompt) / (counters.counted_until_s or self.window_s), rates.output_per_s)

    @property
    def online_rates(self) -> TokenRates:
        """Online tokens a second over the window; a prompt counts as a whole when its first token comes."""
        return self._rates(self.online)

    @property
    def offline_finished(self) -> int:
        """Offline requests that were completed within the window."""
        return sum(record.error is None and self._holds(record.ended_s) for record in self.offline)

    @property
    def offline_failed(self) -> int:
        """Offline requests that failed, at any time."""
        return sum(record.error is not None for record in self.offline)

    @property
    def counters(self) -> Counters:
        """What the counters grew by within the window; those that say how something is *now* are as at its end."""
        now = {
            *("backlog_requests", "kv_reserve_blocks", "model_ready", "model_error_median", "model_error_p95"),
            *("overhead_ms", "host_blocks", "host_slots", "host_block_bytes", "host_block_tokens", "host_kv_bytes"),
        }
        before, after = asdict(self.counters_before), asdict(self.counters_after)
        return Counters(**{name: value - (0.0 if name in now else before[name]) for name, value in after.items()})

    def _holds(self, time_s: float | None) -> bool:
        return time_s is not None and self.window_start_s <= time_s < self.window_end_s

    def _rates(self, records: Iterable[OnlineRecord | OfflineRecord]) -> TokenRates:
        prompt = output = 0
        for record in records:
            if record.events and self._holds(record.events[0].at_s):
                prompt += record.prompt_tokens
            output += sum(event.tokens for event in record.events if self._holds(event.at_s))
        return TokenRates(prompt / self.window_s, output / self.window_s)


def pool_rates(repeats: Iterable[RunResult], rates: Callable[[RunResult], TokenRates]) -> TokenRates:
    """Tokens of all windows over the seconds of all windows."""
    weighted = [(rates(result), result.window_s) for result in repeats]
    window_s = sum(seconds for _, seconds in weighted)
    return TokenRates(
        prompt_per_s=sum(rate.prompt_per_s * seconds for rate, seconds in weighted) / window_s,
        output_per_s=sum(rate.output_per_s * seconds for rate, seconds in weighted) / window_s,
    )


@dataclass(frozen=True)
class CalibrationPoint:
    """One setting tried in short runs, on a seed of its own.

    Attributes:
        mode: `stock` or `conserve`.
        knobs: The setting, by name of `conserve.engine.page.Knobs`.
        window_s: Seconds measured, over all short runs of the setting.
        online_requests: Measured in that time.
        ttft_p50_ms, ttft_p99_ms, tbt_p99_ms: Of those; None without samples.
        offline: Offline rates.
        chosen: Whether the runs use this setting.
    """

    mode: str
    knobs: dict[str, float]
    window_s: float
    online_requests: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tbt_p99_ms: float | None
    offline: TokenRates
    chosen: bool = False


@dataclass(frozen=True)
class WorkloadResults:
    """Everything about one workload of one invocation; what has not been made (yet) is empty.

    Attributes:
        workload: `chat`, `bursty`, `pressure`, `tide` or `prefix`.
        size: `cpu` or `gpu`.
        machine: As `loadtests.report.describe_machine` gives it, with the GPU's name if there is one.
        model: Name of the model.
        engine: Arguments both engines were started with.
        source: Where arrivals and lengths come from: a trace's file name, or `generated`.
        seed: Of the first repeat; repeat r uses `seed + r - 1`.
        repeats: As asked for.
        tightness: Objectives are this times the P99 of `online-only`.
        capacity_per_s: Online requests a second that the stock engine serves when it has always `max_num_seqs` of them.
        online_share: Of that, the mean online load.
        online_rate_per_s: Hence the mean rate of online arrivals.
        duration_s: Length of the measured window.
        objective: The objectives, from `online-only` of repeat 1, for all repeats; None before that run.
        tuning: The grid of `stock-tuned`.
        ceiling_sizes: The batch sizes tried for `ceiling`.
        frontier: Short runs over sizes, of both engines.
        notes: What a reader must know, as sentences.
        runs: In the order in which they were made.
    """

    workload: str
    size: str
    machine: str
    model: str
    engine: dict[str, Any]
    source: str
    seed: int
    repeats: int
    tightness: float
    capacity_per_s: float
    online_share: float
    online_rate_per_s: float
    duration_s: float
    objective: Objective | None = None
    tuning: tuple[CalibrationPoint, ...] = ()
    ceiling_sizes: tuple[CalibrationPoint, ...] = ()
    frontier: tuple[CalibrationPoint, ...] = ()
    notes: tuple[str, ...] = ()
    runs: tuple[RunResult, ...] = ()

    def of(self, run: str) -> list[RunResult]:
        """The repeats of a run."""
        return [result for result in self.runs if result.run == run]
