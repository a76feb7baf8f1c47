"""What an engine and its scheduler count gets to the metrics of the same meaning."""

from __future__ import annotations

import dataclasses
import math

from conserve.engine.contract import EngineStats
from conserve.engine.page import STOP_DEPTHS, STOP_RESPONSES_S, Counters
from conserve.harvest.engine_metrics import EngineMetrics
from conserve.telemetry import harvest_metrics as metrics
from conserve.telemetry.memory_recorder import MemoryRecorder
from conserve.telemetry.online_metrics import ONLINE_RUNNING, ONLINE_WAITING

STATS = EngineStats(
    online_running=3,
    online_waiting=2,
    offline_running=7,
    kv_usage=0.5,
    online_busy_s=10.0,
    offline_busy_s=4.0,
    engine_cpu_s=12.5,
    online_requests=9,
    offline_requests=11,
    offline_prompt_tokens=500,
    offline_output_tokens=60,
)


def test_an_engine_with_vllm_s_own_scheduler_says_what_it_does() -> None:
    recorder = MemoryRecorder()
    engine = EngineMetrics(recorder)
    engine.report(STATS, None)
    engine.report(dataclasses.replace(STATS, offline_output_tokens=70, online_running=0), None)
    assert recorder.value(ONLINE_RUNNING) == 0
    assert recorder.value(ONLINE_WAITING) == 2
    assert recorder.value(metrics.OFFLINE_RUNNING) == 7
    assert recorder.value(metrics.OFFLINE_TOKENS, "prompt") == 500
    assert recorder.value(metrics.OFFLINE_TOKENS, "output") == 70
    assert recorder.value(metrics.BUSY_SECONDS, "offline") == 4
    assert recorder.value(metrics.ENGINE_CPU_SECONDS) == 12.5
    assert recorder.value(metrics.ITERATIONS, "online") is None


def test_what_the_scheduler_has_counted() -> None:
    recorder = MemoryRecorder()
    counters = Counters(
        iterations=100,
        mixed_iterations=30,
        offline_iterations=20,
        offline_recomputed_tokens=40,
        offline_preemptions=3,
        model_samples=5,
        model_error_median=0.1,
        model_error_p95=0.4,
        arrival_wait_ms=12,
        saved_blocks=10,
        restored_blocks=4,
        restored_in_vain=1,
        host_blocks=6,
        host_slots=8,
        host_block_bytes=1000,
        host_block_tokens=16,
        kv_blocks=50,
        kv_block_tokens=32,
        kv_free_blocks=10,
        kv_reserve_blocks=5,
        kv_offline_tokens=320,
    )
    EngineMetrics(recorder).report(STATS, counters)
    assert [recorder.value(metrics.ITERATIONS, one) for one in ("online", "mixed", "offline")] == [50, 30, 20]
    assert recorder.value(metrics.RECOMPUTED_TOKENS, "offline") == 40
    assert recorder.value(metrics.PREEMPTIONS, "offline") == 3
    assert recorder.value(metrics.PREEMPTIONS, "online") == 0
    assert recorder.value(metrics.MODEL_ERROR, "0.95") == 0.4
    assert recorder.value(metrics.ARRIVAL_WAIT) == 0.012
    assert recorder.value(metrics.CHECKPOINT_BYTES, "saved") == 10_000
    assert recorder.value(metrics.CHECKPOINT_LOST_BYTES, "unused") == 1_000
    assert recorder.value(metrics.RESTORED_TOKENS) == 3 * 16
    assert recorder.value(metrics.CHECKPOINT_POOL_USED_BYTES) == 6_000
    assert recorder.value(metrics.KV_CAPACITY) == 1_600
    assert recorder.value(metrics.KV_TOKENS, "reserved") == 160


def test_stops_get_into_the_buckets_that_they_were_counted_in() -> None:
    recorder = MemoryRecorder()
    engine = EngineMetrics(recorder)
    engine.report(STATS, Counters(stops=2, stops_in_5_ms=1, stops_late=1, stops_in_quarter_3=2))
    engine.report(STATS, Counters(stops=3, stops_in_5_ms=2, stops_late=1, stops_in_quarter_3=2, stops_in_quarter_1=1))
    assert recorder.observations(metrics.STOP_RESPONSE) == [0.005, 0.4, 0.005]
    assert recorder.observations(metrics.STOP_DEPTH) == [0.75, 0.75, 0.25]
    assert recorder.value(metrics.STOPS) == 3


def test_the_page_counts_stops_by_the_buckets_of_the_metrics() -> None:
    assert tuple(STOP_RESPONSES_S.values()) == (*metrics.STOP_RESPONSE_BUCKETS_S, math.inf)
    assert tuple(STOP_DEPTHS.values()) == metrics.STOP_DEPTH_BUCKETS
    assert {*STOP_RESPONSES_S, *STOP_DEPTHS} <= {field.name for field in dataclasses.fields(Counters)}
