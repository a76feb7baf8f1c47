from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import CacheConfig

from conserve.engine import engine_outlook
from conserve.engine.arrival_wait import ArrivalWait
from conserve.engine.contract import EngineStats
from conserve.engine.engine_outlook import EngineSizes, describe_conditions, describe_outlook
from conserve.engine.iteration_log import Iteration
from conserve.engine.page import Counters
from conserve.engine.stats import EngineGauges
from conserve.engine.vllm_compat import AsyncLLM
from conserve.engine.vllm_front_compat import count_kv_tokens, count_queued_tokens
from conserve.policy.harvest_rate import IterationCosts
from conserve.policy.outlook import Outlook, predict_ttft_ms

SIZES = EngineSizes(max_num_seqs=16, max_num_batched_tokens=512, kv_tokens=10_000, tbt_slo_ms=100)
COSTS = IterationCosts(overhead_ms=20.0, prompt_token_ms=0.5, decode_ms=2.0)


@pytest.fixture(autouse=True)
def gauges(monkeypatch: pytest.MonkeyPatch) -> EngineGauges:
    gauges = EngineGauges()
    monkeypatch.setattr(engine_outlook, "GAUGES", gauges)
    return gauges


def make_stats(**values: Any) -> EngineStats:
    names = ("online_running", "online_waiting", "offline_running", "online_requests", "offline_requests")
    zeros = dict.fromkeys((*names, "offline_prompt_tokens", "offline_output_tokens"), 0)
    busy = dict.fromkeys(("kv_usage", "online_busy_s", "offline_busy_s", "engine_cpu_s"), 0.0)
    return EngineStats(**{**zeros, **busy, "costs": COSTS, **values})


def describe(stats: EngineStats, counters: Counters | None, queued_tokens: int = 0) -> Outlook:
    return describe_outlook(stats, counters, SIZES, queued_tokens)


def predict(outlook: Outlook) -> float:
    return predict_ttft_ms(outlook, outlook.prompt_tokens * outlook.token_ms, 100)


def test_offline_work_that_gives_way_takes_no_slots_and_little_time() -> None:
    idle = describe(make_stats(), Counters())
    busy = describe(make_stats(offline_running=12), Counters(arrival_wait_ms=8.0), queued_tokens=9_000)
    assert busy.free_slots == idle.free_slots == 16
    assert predict(busy) - predict(idle) == pytest.approx(8.0)


def test_in_a_stock_engine_offline_work_counts_in_full(gauges: EngineGauges) -> None:
    gauges.add_prefill(500.0, 1_000)
    idle = describe(make_stats(), None)
    busy = describe(make_stats(offline_running=12), None, queued_tokens=9_000)
    assert busy.free_slots == 4
    assert predict(busy) - predict(idle) >= 9_000 * 0.5


def test_time_of_an_engine_that_has_been_idle_since_is_not_counted() -> None:
    assert describe(make_stats(), Counters(arrival_wait_ms=80.0)).wait_ms == 0.0


def test_a_stock_engine_s_own_online_prompts_are_not_taken_for_offline_ones(gauges: EngineGauges) -> None:
    gauges.add_prefill(500.0, 1_000)
    outlook = describe(make_stats(online_waiting=1, waiting_prompt_tokens=600.0), None, queued_tokens=600)
    assert (outlook.wait_ms, outlook.prompt_tokens) == (0.0, 600.0)


def test_prompts_take_longer_beside_those_who_decode() -> None:
    alone, beside = (describe(make_stats(online_running=count), Counters()) for count in (0, 8))
    long = [predict_ttft_ms(outlook, 0.0, 2_000) for outlook in (alone, beside)]
    assert long[1] > 1.3 * long[0]
    assert beside.iteration_tokens == pytest.approx((100 - 36) / 0.5)


def test_memory_that_is_free() -> None:
    busy = make_stats(kv_usage=0.75, offline_running=1)
    assert describe(busy, Counters()).free_kv_tokens == pytest.approx(2_500)
    idle = make_stats(kv_usage=0.75)
    assert describe(idle, Counters()).free_kv_tokens == 10_000, "nobody has it any more"


def test_what_is_asked_of_vllm() -> None:
    assert callable(AsyncLLM.get_num_queued_tokens)
    cache = SimpleNamespace(num_gpu_blocks=100, block_size=16)
    client: Any = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache), get_num_queued_tokens=lambda: 7)
    assert (count_kv_tokens(client), count_queued_tokens(client)) == (1_600, 7)
    cache.num_gpu_blocks = None
    assert count_kv_tokens(client) == math.inf
    assert {"num_gpu_blocks", "block_size"} <= {field.name for field in dataclasses.fields(CacheConfig)}


def test_an_engine_that_has_learnt_nothing_says_so() -> None:
    outlook = describe(make_stats(costs=IterationCosts(), online_running=2), Counters())
    assert outlook.prompt_token_ms == 0.0
    assert outlook.iteration_tokens == 512


def observe(wait: ArrivalWait, let_go_ms: float, *, online: bool) -> float:
    mean_ms = 0.0
    for number in range(50):
        iteration = Iteration(number * 0.4, number * 0.4 + 0.4, 0.0, float(online), 500.0, 400.0, 0.0)
        mean_ms = wait.observe(iteration, let_go_ms)
    return mean_ms


def test_iterations_are_waited_for_unless_they_are_stopped() -> None:
    assert observe(ArrivalWait(20), math.inf, online=False) == pytest.approx(200.0)
    assert observe(ArrivalWait(20), 0.0, online=True) == pytest.approx(200.0)
    assert observe(ArrivalWait(20), 0.0, online=False) == pytest.approx(40.0)
    # One that is nearly done comes to its end.
    assert observe(ArrivalWait(20), 200.0, online=False) == pytest.approx(50.0 + 20.0)


def test_prefill_speed_follows_the_latest_requests() -> None:
    gauges = EngineGauges()
    assert gauges.prompt_token_ms == 0.0
    for _ in range(200):
        gauges.add_prefill(100.0, 100)
    gauges.add_prefill(0.0, 100)
    gauges.add_prefill(100.0, 0)
    assert gauges.prompt_token_ms == pytest.approx(1.0)
    for _ in range(200):
        gauges.add_prefill(200.0, 100)
    assert gauges.prompt_token_ms == pytest.approx(2.0, rel=0.01)


def test_conditions_are_what_the_scheduler_has_learnt() -> None:
    counters = Counters(
        iteration_ms=20.0,
        prompt_token_ms=0.5,
        decode_ms=2.0,
        arrival_wait_ms=8.0,
        kv_block_tokens=16,
        kv_free_blocks=100,
        kv_offline_tokens=3_200,
    )
    idle = describe_conditions(counters, SIZES, 0)
    assert (idle.outlook.iteration_ms, idle.outlook.wait_ms, idle.outlook.free_kv_tokens) == (20.0, 0.0, 10_000)
    assert idle.outlook.iteration_tokens == SIZES.max_num_batched_tokens
    busy = describe_conditions(counters, SIZES, 10)
    assert (busy.outlook.iteration_ms, busy.decode_ms, busy.slots) == (40.0, 2.0, SIZES.max_num_seqs)
    assert busy.outlook.free_kv_tokens == 100 * 16 + 3_200
    # Beside those who decode a prompt is computed in parts.
    assert busy.outlook.iteration_tokens == (100 - 40) / 0.5


def test_a_stock_engine_says_what_prompts_cost(gauges: EngineGauges) -> None:
    gauges.add_prefill(500.0, 1_000)
    conditions = describe_conditions(None, SIZES, 10)
    assert conditions.outlook.prompt_token_ms == pytest.approx(0.5)
    assert (conditions.decode_ms, conditions.outlook.free_kv_tokens) == (0.0, math.inf)
