from __future__ import annotations

from dataclasses import replace

import pytest

from conserve.engine.contract import EngineStats
from conserve.harvest.capacity_meter import CapacityMeter
from conserve.harvest.messages import CapacityReport
from conserve.policy.harvest_rate import IterationCosts

STOCK = EngineStats(
    online_running=0,
    online_waiting=0,
    offline_running=0,
    kv_usage=0.0,
    online_busy_s=0.0,
    offline_busy_s=0.0,
    engine_cpu_s=0.0,
    online_requests=0,
    offline_requests=0,
    offline_prompt_tokens=0,
    offline_output_tokens=0,
)
LEARNT = replace(STOCK, costs=IterationCosts(8.0, 0.03, 0.04))


def test_an_engine_without_a_latency_model_reports_no_headroom() -> None:
    found = CapacityMeter(50.0, 64).measure(STOCK, 1.0)
    assert (found["headroom_tokens_per_s"], found["headroom_requests"], found["slo_attainment"]) == (None, None, None)
    report = CapacityReport(replica_id="r", model="m", state="serving", window=0, **found)
    assert report.to_capacity().headroom is None


def test_headroom_is_for_requests_like_those_seen_and_no_more_than_the_slots() -> None:
    usual = CapacityMeter(50.0, 10_000).measure(LEARNT, 1.0)
    long = replace(LEARNT, offline_requests=3, offline_running=1, offline_prompt_tokens=8_000, offline_output_tokens=16)
    assert CapacityMeter(50.0, 10_000).measure(long, 1.0)["headroom_requests"] < usual["headroom_requests"]
    assert CapacityMeter(50.0, 16).measure(LEARNT, 1.0)["headroom_requests"] == 16


def test_online_load_is_seen_in_all_of_it() -> None:
    meter = CapacityMeter(50.0, 64)
    for step in range(400):
        stats = replace(
            LEARNT,
            online_running=20,
            online_requests=step,
            first_tokens=step,
            late_first_tokens=step // 4,
            next_tokens=10 * step,
        )
        found = meter.measure(stats, step / 4)
    assert found["online_rate_per_s"] == pytest.approx(4.0, rel=0.05)
    assert found["online_forecast_per_s"] == pytest.approx(4.0, rel=0.1)
    assert found["headroom_requests"] <= 64 - 19
    assert found["slo_attainment"] == pytest.approx(0.75, abs=0.02), "the worse of the two kinds of tokens"
