"""A page of memory shared by the front of an engine and its scheduler, which live in two processes.

The front writes `Knobs`, the scheduler writes `Counters`; each field has one writer and is one aligned 64-bit float, so
no lock is needed and a reader sees the old or the new value. A step of the scheduler reads and writes it in
microseconds; nothing travels with requests or their answers.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Final

from conserve.engine.shared_memory import create_file

_FLOAT_BYTES = 8
AS_STARTED = 0.0


@dataclass(frozen=True)
class Knobs:
    """What can be changed while the engine runs. 0 leaves a setting as the engine was started with.

    Attributes:
        ttft_slo_ms, tbt_slo_ms: Objectives of the first class; `math.inf` for none.
        max_num_batched_tokens: Tokens of an iteration, no more than the engine was started with.
        max_num_seqs, long_prefill_token_threshold: As in vLLM, no more than at the start (stock engines only).
        offline_pass_tokens: Tokens of an iteration without online requests, at most.
        token_budget_off: 1 fills iterations to the brim, as without any objectives (ablation).
        prefix_order_off: 1 takes offline requests in the order of arrival (ablation).
        safepoints_off: 1 lets every pass come to its end (ablation).
        resume_off: 1 throws away what was computed of a stopped pass (ablation).
        checkpoints_off: 1 copies no more KV blocks to host memory (ablation).
        full_passes: 1 fills iterations without online requests up to `offline_pass_tokens`, whatever the objectives.
        offline_floor: Share of the time that offline requests get beside online ones, whatever the objectives leave.
        offline_paused: 1 runs no offline request beside online ones, unless `offline_floor` grants it time.
        save_profile: Each new value makes the scheduler store its latency profile, in its next step.
    """

    ttft_slo_ms: float = AS_STARTED
    tbt_slo_ms: float = AS_STARTED
    max_num_batched_tokens: float = AS_STARTED
    max_num_seqs: float = AS_STARTED
    long_prefill_token_threshold: float = AS_STARTED
    offline_pass_tokens: float = AS_STARTED
    token_budget_off: float = 0.0
    prefix_order_off: float = 0.0
    safepoints_off: float = 0.0
    resume_off: float = 0.0
    checkpoints_off: float = 0.0
    full_passes: float = 0.0
    offline_floor: float = 0.0
    offline_paused: float = 0.0
    save_profile: float = 0.0


@dataclass
class Counters:
    """What the scheduler has done since it started. Totals, unless another meaning is given.

    Attributes:
        iterations: Iterations with at least one token; `mixed_iterations` had online and offline requests,
            `offline_iterations` offline ones only.
        offline_prefill_tokens, offline_decode_tokens: Offline tokens scheduled.
        offline_cached_tokens: Tokens that offline requests found in the KV cache when they began.
        held_requests: Offline requests with a slot that were held back, added up over the iterations.
        offline_preemptions: Offline requests preempted for online ones or for KV blocks.
        online_preemptions: Online requests preempted: for want of KV blocks with no offline request left to preempt.
        offline_recomputed_tokens, online_recomputed_tokens: Computed tokens that preempted requests lost and, when they
            went on, did not get back from the prefix cache.
        backlog_requests: Offline requests waiting in the engine now.
        kv_reserve_blocks: KV blocks kept free for online bursts now.
        model_ready: 1 once the latency model may be used.
        model_error_median, model_error_p95: Relative error of its predictions of iterations not yet seen, now.
        model_samples: Recent predictions that the error is of.
        overhead_ms: Predicted time of the smallest iteration, now.
        arrival_wait_ms: How long an online request would have waited for an iteration to end or to be stopped, on
            average over the latest seconds.
        iteration_ms, prompt_token_ms, decode_ms: What an iteration, each prompt token and each decode more take by the
            latency model, now (`policy.harvest_rate`); 0 as long as it is not ready.
        over_budget_iterations: Mixed iterations that took longer than their objective allowed.
        stops: Passes that were stopped between two layers; `resumed_passes` of them were continued.
        stops_in_1_ms to stops_late: Stops by how long after the announcement of a request they came, see
            `STOP_RESPONSES_S`; those in a batch without one are not there.
        stops_in_quarter_1 to stops_in_quarter_4: Stops by the part of the layers that was computed, see `STOP_DEPTHS`.
        wasted_tokens: Tokens computed in vain by stopped passes; a part of the layers counts for its share.
        kept_bytes: Memory of the largest pass that was kept.
        missing_arrivals: Announced online requests that did not come in time and were waited for.
        saved_blocks: KV blocks of offline requests that were sent to host memory.
        restored_blocks: Those that were sent back; `restored_in_vain` of them were given back unused.
        dropped_blocks: Copies given up for others, with host memory full.
        uncovered_blocks: Blocks that found no room in host memory.
        failed_copies: Blocks whose copy has failed.
        copied_blocks, copy_s: Blocks copied to and fro, and the time that took.
        copy_wait_s: Time that batches have waited for copies.
        host_blocks: Blocks in host memory now, of `host_slots` that it has room for. Each has `host_block_bytes` and
            `host_block_tokens`.
        host_kv_bytes: Host memory that workers are to take for them; 0 for none.
        kv_blocks: KV blocks that the device has, of `kv_block_tokens` each; now `kv_free_blocks` of them are free, and
            offline requests have computed `kv_offline_tokens`.
        first_tokens, next_tokens: Tokens of online requests that came with an iteration in which offline ones were;
            `late_first_tokens` and `late_next_tokens` of them after their objective.
        schedule_s: Seconds spent in the scheduler's `schedule`.
        counted_until_s: When the last of the counted iterations ended, by `time.monotonic`; 0 before the first.
    """

    iterations: float = 0.0
    mixed_iterations: float = 0.0
    offline_iterations: float = 0.0
    offline_prefill_tokens: float = 0.0
    offline_decode_tokens: float = 0.0
    offline_cached_tokens: float = 0.0
    held_requests: float = 0.0
    offline_preemptions: float = 0.0
    online_preemptions: float = 0.0
    offline_recomputed_tokens: float = 0.0
    online_recomputed_tokens: float = 0.0
    backlog_requests: float = 0.0
    kv_reserve_blocks: float = 0.0
    model_ready: float = 0.0
    model_error_median: float = 0.0
    model_error_p95: float = 0.0
    model_samples: float = 0.0
    overhead_ms: float = 0.0
    arrival_wait_ms: float = 0.0
    iteration_ms: float = 0.0
    prompt_token_ms: float = 0.0
    decode_ms: float = 0.0
    over_budget_iterations: float = 0.0
    stops: float = 0.0
    resumed_passes: float = 0.0
    stops_in_1_ms: float = 0.0
    stops_in_2_ms: float = 0.0
    stops_in_5_ms: float = 0.0
    stops_in_10_ms: float = 0.0
    stops_in_20_ms: float = 0.0
    stops_in_50_ms: float = 0.0
    stops_in_100_ms: float = 0.0
    stops_in_200_ms: float = 0.0
    stops_late: float = 0.0
    stops_in_quarter_1: float = 0.0
    stops_in_quarter_2: float = 0.0
    stops_in_quarter_3: float = 0.0
    stops_in_quarter_4: float = 0.0
    wasted_tokens: float = 0.0
    kept_bytes: float = 0.0
    missing_arrivals: float = 0.0
    saved_blocks: float = 0.0
    restored_blocks: float = 0.0
    restored_in_vain: float = 0.0
    dropped_blocks: float = 0.0
    uncovered_blocks: float = 0.0
    failed_copies: float = 0.0
    copied_blocks: float = 0.0
    copy_s: float = 0.0
    copy_wait_s: float = 0.0
    host_blocks: float = 0.0
    host_slots: float = 0.0
    host_block_bytes: float = 0.0
    host_block_tokens: float = 0.0
    host_kv_bytes: float = 0.0
    kv_blocks: float = 0.0
    kv_block_tokens: float = 0.0
    kv_free_blocks: float = 0.0
    kv_offline_tokens: float = 0.0
    first_tokens: float = 0.0
    late_first_tokens: float = 0.0
    next_tokens: float = 0.0
    late_next_tokens: float = 0.0
    schedule_s: float = 0.0
    counted_until_s: float = 0.0


STOP_RESPONSES_S: Final = {
    "stops_in_1_ms": 0.001,
    "stops_in_2_ms": 0.002,
    "stops_in_5_ms": 0.005,
    "stops_in_10_ms": 0.01,
    "stops_in_20_ms": 0.02,
    "stops_in_50_ms": 0.05,
    "stops_in_100_ms": 0.1,
    "stops_in_200_ms": 0.2,
    "stops_late": math.inf,
}
"""Fields of `Counters` with the seconds that their stops took at most, each more than those of the field before."""
STOP_DEPTHS: Final = {
    "stops_in_quarter_1": 0.25,
    "stops_in_quarter_2": 0.5,
    "stops_in_quarter_3": 0.75,
    "stops_in_quarter_4": 1.0,
}
"""Likewise with the share of the layers that was computed."""

_KNOBS = [field.name for field in fields(Knobs)]
_COUNTERS = [field.name for field in fields(Counters)]
_BYTES = _FLOAT_BYTES * (len(_KNOBS) + len(_COUNTERS))
_knob_values = attrgetter(*_KNOBS)
_counter_values = attrgetter(*_COUNTERS)


class EnginePage:
    """The page, mapped into this process. `path` names it to the other one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size != _BYTES:
                raise ValueError(f"{path}: is no page of this version of ConServe")
            self._map = mmap.mmap(file.fileno(), _BYTES)
        self._values = memoryview(self._map).cast("d")

    @classmethod
    def create(cls) -> EnginePage:
        """Makes a page; whoever made it removes it with `remove`."""
        return cls(create_file("conserve-engine-", _BYTES))

    def remove(self) -> None:
        """Removes the file. Who has mapped it can go on using it."""
        self.path.unlink(missing_ok=True)

    def write_knobs(self, knobs: Knobs) -> None:
        """Sets all knobs."""
        for index, value in enumerate(_knob_values(knobs)):
            self._values[index] = value

    def read_knobs(self) -> Knobs:
        """The knobs as they stand."""
        return Knobs(*self._values[: len(_KNOBS)])

    def write_counters(self, counters: Counters) -> None:
        """Sets all counters."""
        for index, value in enumerate(_counter_values(counters), len(_KNOBS)):
            self._values[index] = value

    def read_counters(self) -> Counters:
        """The counters as they stand."""
        return Counters(*self._values[len(_KNOBS) :])
