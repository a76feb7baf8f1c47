from __future__ import annotations

from conserve.harvest.messages import CapacityReport, LatencyNow
from conserve.harvest.recent_latency import KEPT_S, MOST_KEPT, RecentLatency


def test_percentiles_are_of_values_that_have_been() -> None:
    latency = RecentLatency()
    for number in range(1, 101):
        latency.note_ttft("default", 1.0, number / 1e3)
    latency.note_tbt("fast", 2.0, 0.02)
    assert latency.measure(3.0) == {
        "latency": {
            "default": LatencyNow(ttft_p50_ms=50.0, ttft_p95_ms=95.0),
            "fast": LatencyNow(tbt_p50_ms=20.0, tbt_p95_ms=20.0),
        }
    }


def test_what_is_old_is_forgotten() -> None:
    latency = RecentLatency()
    latency.note_tbt("default", 1.0, 9.0)
    latency.note_tbt("default", 2.0, 0.1)
    assert latency.measure(1.5 + KEPT_S)["latency"]["default"].tbt_p95_ms == 100.0
    assert latency.measure(2.5 + KEPT_S) == {"latency": {}}


def test_it_keeps_no_more_than_its_limit() -> None:
    latency = RecentLatency()
    for number in range(3 * MOST_KEPT):
        latency.note_ttft("default", 1.0, float(number))
    assert latency.measure(1.0)["latency"]["default"].ttft_p50_ms == (2.5 * MOST_KEPT - 1) * 1e3


def test_a_report_carries_it_and_does_without_it() -> None:
    latency = RecentLatency()
    latency.note_ttft("default", 1.0, 0.25)
    report = CapacityReport(replica_id="r", model="m", state="serving", window=0, **latency.measure(1.0))
    read = CapacityReport.model_validate_json(report.model_dump_json(exclude_defaults=True))
    assert read.latency["default"].ttft_p50_ms == 250.0
    older = CapacityReport.model_validate_json('{"replica_id": "r", "model": "m", "state": "serving", "window": 0}')
    assert (older.latency, older.stops, older.restored_tokens) == ({}, None, None)
