"""Which settings are tried, and which are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from conserve.config import EngineSettings
from conserve.engine.page import Counters, Knobs
from loadtests.coserving.calibration import (
    TuningTimes,
    find_ceiling_size,
    find_chosen,
    list_batch_sizes,
    list_stock_sizes,
    make_ceiling_knobs,
    tune_stock,
)
from loadtests.coserving.results import OfflineRecord, OnlineRecord, OutputEvent, RunResult
from tests.unit.loadtests.fake_engine import run_virtually

TIMES = TuningTimes(8.0, 22.0)


def settings_of(batch_tokens: int, sequences: int = 16) -> EngineSettings:
    return EngineSettings(max_num_batched_tokens=batch_tokens, max_num_seqs=sequences)


def make_result(ttft_ms: float | None, offline_per_s: float, window_s: float = 8.0) -> RunResult:
    online = OnlineRecord(
        1.0, 1.0, (OutputEvent(1.0 + (ttft_ms or 0) / 1e3, 1),), prompt_tokens=5, output_tokens=1, ended_s=2.0
    )
    prompt_tokens = round(offline_per_s * window_s) - 1
    offline = OfflineRecord(0.0, (OutputEvent(3.0, 1),), prompt_tokens, 1, None)
    return RunResult(
        run="short",
        repeat=1,
        workload="chat",
        seed=1,
        mode="stock",
        window_start_s=0.0,
        window_end_s=window_s,
        online=(online,) if ttft_ms is not None else (),
        offline=(offline,),
        counters_before=Counters(),
        counters_after=Counters(offline_prefill_tokens=prompt_tokens),
        peak_memory_bytes=1,
    )


class Measured:
    """Gives the result that `judge` has for the settings, and remembers what was asked for."""

    def __init__(self, judge: Callable[[Knobs, float], tuple[float | None, float]]) -> None:
        self.judge = judge
        self.asked: list[tuple[Knobs, float]] = []

    async def __call__(self, knobs: Knobs, window_s: float) -> RunResult:
        self.asked.append((knobs, window_s))
        return make_result(*self.judge(knobs, window_s), window_s)


def test_the_grid_is_the_stated_one() -> None:
    grid = list_stock_sizes(settings_of(2_048))
    assert len(grid) == len(set(grid)) == 2 * (2 + 2 + 3 + 3)
    assert Knobs(max_num_batched_tokens=2_048, long_prefill_token_threshold=256, max_num_seqs=8) in grid
    assert Knobs(max_num_batched_tokens=128, max_num_seqs=16) in grid
    # A threshold of the batch size or above is none.
    assert not any(knobs.long_prefill_token_threshold >= knobs.max_num_batched_tokens for knobs in grid)


def test_no_size_is_above_the_engine_s() -> None:
    assert list_batch_sizes(settings_of(512)) == [128, 256, 512]
    assert list_batch_sizes(settings_of(300)) == [128, 256, 300]
    assert {knobs.max_num_seqs for knobs in list_stock_sizes(settings_of(64, sequences=1))} == {1}


def test_the_lowest_latency_with_enough_offline_work_is_chosen() -> None:
    sizes = [Knobs(max_num_batched_tokens=tokens) for tokens in (1, 2, 3, 4, 5, 6, 7)]
    # P99 TTFT and offline rate; 2 has too little offline work, 7 the most of it.
    judged = {1: (90, 100), 2: (10, 85), 3: (50, 95), 4: (60, 99), 5: (70, 60), 6: (20, 50), 7: (99, 101)}
    measure = Measured(lambda knobs, _: judged[int(knobs.max_num_batched_tokens)])
    points = run_virtually(tune_stock(sizes, measure, TIMES))
    assert [point.knobs["max_num_batched_tokens"] for point in points] == [1, 2, 3, 4, 5, 6, 7]
    assert [point.chosen for point in points].count(True) == 1
    assert find_chosen(points).knobs == {"max_num_batched_tokens": 3}
    # All of them once, then the four best, of which the one with most offline work is always one.
    assert [window_s for _, window_s in measure.asked] == [8.0] * 7 + [22.0] * 4
    assert {int(knobs.max_num_batched_tokens) for knobs, _ in measure.asked[7:]} == {7, 2, 3, 4}
    assert points[2].window_s == 30
    assert points[2].online_requests == 2
    assert points[0].window_s == 8


def test_both_rounds_are_judged_together() -> None:
    sizes = [Knobs(max_num_batched_tokens=tokens) for tokens in (1, 2)]
    # 1 looks better in the first round alone; the second one shows that it does too little offline work.
    judged = {(1, 8.0): (10, 100), (1, 22.0): (10, 40), (2, 8.0): (50, 100), (2, 22.0): (50, 100)}
    measure = Measured(lambda knobs, window_s: judged[int(knobs.max_num_batched_tokens), window_s])
    points = run_virtually(tune_stock(sizes, measure, TIMES))
    assert find_chosen(points).knobs == {"max_num_batched_tokens": 2}
    assert points[0].offline.total_per_s == pytest.approx((100 * 8 + 40 * 22) / 30)


def test_a_setting_without_answers_is_the_last_choice() -> None:
    measure = Measured(lambda knobs, _: (None, 100) if knobs.max_num_batched_tokens == 1 else (1e6, 100))
    points = run_virtually(tune_stock([Knobs(max_num_batched_tokens=tokens) for tokens in (1, 2)], measure, TIMES))
    assert find_chosen(points).knobs == {"max_num_batched_tokens": 2}


def test_the_ceiling_takes_the_size_with_most_offline_work_and_has_no_objectives() -> None:
    rates = {128: 90.0, 256: 110.0, 512: 100.0}
    measure = Measured(lambda knobs, _: (5.0, rates[int(knobs.max_num_batched_tokens)]))
    points = run_virtually(find_ceiling_size([128, 256, 512], measure, 12.0))
    assert find_chosen(points).knobs == {"max_num_batched_tokens": 256, "offline_pass_tokens": 256}
    knobs, window_s = measure.asked[1]
    assert knobs == make_ceiling_knobs(256)
    assert math.isinf(knobs.ttft_slo_ms)
    assert math.isinf(knobs.tbt_slo_ms)
    assert window_s == 12


def test_short_runs_have_some_online_requests() -> None:
    assert TuningTimes.for_rate(100.0) == TuningTimes(6.0, 18.0)
    assert TuningTimes.for_rate(0.7).first_s == pytest.approx(10.0)
    assert TuningTimes.for_rate(0.01) == TuningTimes(16.0, 48.0)
