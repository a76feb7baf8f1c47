"""Tells what an engine is doing, and what its scheduler has counted, to whoever takes measurements."""

from __future__ import annotations

from conserve.engine.contract import EngineStats
from conserve.engine.page import STOP_DEPTHS, STOP_RESPONSES_S, Counters
from conserve.telemetry import harvest_metrics as metrics
from conserve.telemetry.metric import Recorder, Totals
from conserve.telemetry.online_metrics import ONLINE_RUNNING, ONLINE_WAITING


class EngineMetrics:
    """Of one engine. To be told every second or so; the engine itself keeps plain numbers.

    Args:
        recorder: Takes them.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._totals = Totals(recorder)

    def report(self, stats: EngineStats, counters: Counters | None) -> None:
        """What is the case now.

        Args:
            stats: Of the engine.
            counters: Of its scheduler; None where that is not ours.
        """
        gauge, total = self._recorder.set, self._totals.report
        gauge(ONLINE_RUNNING, stats.online_running)
        gauge(ONLINE_WAITING, stats.online_waiting)
        gauge(metrics.OFFLINE_RUNNING, stats.offline_running)
        total(metrics.OFFLINE_TOKENS, stats.offline_prompt_tokens, "prompt")
        total(metrics.OFFLINE_TOKENS, stats.offline_output_tokens, "output")
        total(metrics.BUSY_SECONDS, stats.online_busy_s, "online")
        total(metrics.BUSY_SECONDS, stats.offline_busy_s, "offline")
        total(metrics.ENGINE_CPU_SECONDS, stats.engine_cpu_s)
        if counters is not None:
            self._report_scheduling(counters)
            self._report_stops(counters)
            self._report_memory(counters)

    def _report_scheduling(self, counters: Counters) -> None:
        gauge, total = self._recorder.set, self._totals.report
        offline, mixed = counters.offline_iterations, counters.mixed_iterations
        total(metrics.ITERATIONS, offline, "offline")
        total(metrics.ITERATIONS, mixed, "mixed")
        # The page is written field by field: the difference may be one behind for a moment.
        total(metrics.ITERATIONS, max(0.0, counters.iterations - offline - mixed), "online")
        total(metrics.LATE_ITERATIONS, counters.over_budget_iterations)
        total(metrics.SCHEDULE_SECONDS, counters.schedule_s)
        total(metrics.OFFLINE_COMPUTED_TOKENS, counters.offline_prefill_tokens, "prompt")
        total(metrics.OFFLINE_COMPUTED_TOKENS, counters.offline_decode_tokens, "output")
        total(metrics.OFFLINE_CACHED_TOKENS, counters.offline_cached_tokens)
        gauge(metrics.ARRIVAL_WAIT, counters.arrival_wait_ms / 1e3)
        gauge(metrics.MODEL_READY, counters.model_ready)
        if counters.model_samples:
            gauge(metrics.MODEL_ERROR, counters.model_error_median, "0.5")
            gauge(metrics.MODEL_ERROR, counters.model_error_p95, "0.95")

    def _report_stops(self, counters: Counters) -> None:
        total = self._totals.report
        total(metrics.STOPS, counters.stops)
        total(metrics.RESUMED_PASSES, counters.resumed_passes)
        total(metrics.STOPPED_WASTE, counters.wasted_tokens)
        longest_s = 2 * metrics.STOP_RESPONSE_BUCKETS_S[-1]  # For what came later than all bounds.
        responses = {min(bound_s, longest_s): getattr(counters, name) for name, bound_s in STOP_RESPONSES_S.items()}
        self._totals.report_buckets(metrics.STOP_RESPONSE, responses)
        self._totals.report_buckets(
            metrics.STOP_DEPTH, {value: getattr(counters, name) for name, value in STOP_DEPTHS.items()}
        )
        total(metrics.PREEMPTIONS, counters.online_preemptions, "online")
        total(metrics.PREEMPTIONS, counters.offline_preemptions, "offline")
        total(metrics.RECOMPUTED_TOKENS, counters.online_recomputed_tokens, "online")
        total(metrics.RECOMPUTED_TOKENS, counters.offline_recomputed_tokens, "offline")

    def _report_memory(self, counters: Counters) -> None:
        gauge, total = self._recorder.set, self._totals.report
        block_bytes, block_tokens = counters.host_block_bytes, counters.host_block_tokens
        total(metrics.CHECKPOINT_BYTES, counters.saved_blocks * block_bytes, "saved")
        total(metrics.CHECKPOINT_BYTES, counters.restored_blocks * block_bytes, "restored")
        total(metrics.CHECKPOINT_LOST_BYTES, counters.dropped_blocks * block_bytes, "dropped")
        total(metrics.CHECKPOINT_LOST_BYTES, counters.uncovered_blocks * block_bytes, "uncovered")
        total(metrics.CHECKPOINT_LOST_BYTES, counters.failed_copies * block_bytes, "failed")
        total(metrics.CHECKPOINT_LOST_BYTES, counters.restored_in_vain * block_bytes, "unused")
        used_again = max(0.0, counters.restored_blocks - counters.restored_in_vain)
        total(metrics.RESTORED_TOKENS, used_again * block_tokens)
        total(metrics.CHECKPOINT_COPY_SECONDS, counters.copy_s)
        total(metrics.CHECKPOINT_WAIT_SECONDS, counters.copy_wait_s)
        gauge(metrics.CHECKPOINT_POOL_BYTES, counters.host_slots * block_bytes)
        gauge(metrics.CHECKPOINT_POOL_USED_BYTES, counters.host_blocks * block_bytes)
        kv_block_tokens = counters.kv_block_tokens
        gauge(metrics.KV_CAPACITY, counters.kv_blocks * kv_block_tokens)
        gauge(metrics.KV_TOKENS, counters.kv_free_blocks * kv_block_tokens, "free")
        gauge(metrics.KV_TOKENS, counters.kv_reserve_blocks * kv_block_tokens, "reserved")
        gauge(metrics.KV_TOKENS, counters.kv_offline_tokens, "offline")
