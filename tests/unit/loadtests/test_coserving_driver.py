"""Runs against a fake engine, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from conserve.engine.options import Objective
from conserve.engine.page import Knobs
from loadtests.coserving.driver import RunError, RunPlan, make_run
from loadtests.coserving.workloads import BenchRequest
from tests.unit.loadtests.fake_engine import FakeEngine, run_virtually

OFFLINE = BenchRequest((1,) * 100, 5)
ONLINE = tuple(BenchRequest((2, index), 3, due_s=float(index)) for index in range(10))
PLAN = RunPlan(
    run="conserve",
    repeat=2,
    workload="chat",
    seed=5,
    mode="conserve",
    window_start_s=4.0,
    window_end_s=12.0,
    knobs=Knobs(),
    online=ONLINE,
    online_start_s=2.0,
    offline=None,
    offline_in_flight=0,
)


def backlog(plan: RunPlan = PLAN, in_flight: int = 3, **changes: Any) -> RunPlan:
    requests: Iterator[BenchRequest] = itertools.repeat(OFFLINE)
    return replace(plan, offline=requests, offline_in_flight=in_flight, **changes)


def test_requests_are_sent_when_due_and_their_tokens_recorded() -> None:
    result = run_virtually(make_run(FakeEngine(), PLAN))
    assert [record.intended_s for record in result.online] == pytest.approx([2.0 + index for index in range(10)])
    assert [record.sent_s for record in result.online] == pytest.approx([2.0 + index for index in range(10)])
    for record in result.online:
        assert record.error is None
        assert record.ttft_ms == pytest.approx(2)
        assert record.tbt_ms == pytest.approx((30, 30))
        assert record.ended_s == pytest.approx(record.intended_s + 0.062)
    # Due at 2 and 3 s: before the window.
    assert len(result.measured_online) == 8
    assert (result.run, result.repeat, result.workload, result.seed, result.mode) == (
        "conserve",
        2,
        "chat",
        5,
        "conserve",
    )
    assert result.peak_memory_bytes == 7
    assert result.counters.iterations == 24


def test_arrivals_do_not_wait_for_answers() -> None:
    engine = FakeEngine(prompt_token_s=100.0)
    result = run_virtually(make_run(engine, replace(PLAN, drain_limit_s=1_000)))
    assert engine.most_in_flight[True] == 10
    assert all(record.send_lag_ms == pytest.approx(0) for record in result.online)


def test_the_backlog_is_kept_full_until_the_window_ends() -> None:
    engine = FakeEngine()
    result = run_virtually(make_run(engine, backlog()))
    assert engine.most_in_flight[False] == 3
    assert engine.in_flight == {True: 0, False: 0}
    cancelled = [record for record in result.offline if record.ended_s is None]
    assert len(cancelled) == 3
    assert all(record.error is None for record in result.offline)
    assert max(record.started_s for record in result.offline) <= 12.0
    assert result.offline_finished == sum(
        record.ended_s is not None and 4 <= record.ended_s < 12 for record in result.offline
    )


def test_rates_are_those_of_the_window_alone() -> None:
    # One prompt at a time, 0.103125 s each; the outputs follow while the next prompts are computed.
    result = run_virtually(make_run(FakeEngine(), backlog(in_flight=10, online=())))
    per_s = 1 / (0.1 * (1 + 16 / 512))
    assert result.offline_rates.prompt_per_s == pytest.approx(100 * per_s, rel=0.02)
    assert result.offline_rates.output_per_s == pytest.approx(5 * per_s, rel=0.02)
    assert result.online_rates.total_per_s == 0


def test_online_requests_are_waited_for_after_the_window() -> None:
    engine = FakeEngine(prompt_token_s=3.0)
    result = run_virtually(make_run(engine, PLAN))
    assert [record.error for record in result.online] == [None] * 10
    assert result.online[-1].ended_s > PLAN.window_end_s


def test_offline_work_goes_on_beside_the_last_online_requests() -> None:
    plan = backlog(loaded_drain_s=4.0)
    slow = run_virtually(make_run(FakeEngine(token_s=3.0), plan))
    ends_s = [record.ended_s for record in slow.offline if record.ended_s is not None]
    assert PLAN.window_end_s < max(record.ended_s for record in slow.online)
    assert PLAN.window_end_s < max(ends_s) <= PLAN.window_end_s + 4.0
    quick = run_virtually(make_run(FakeEngine(), plan))
    last_s = max(record.ended_s for record in quick.online)
    assert max(record.started_s for record in quick.offline) <= max(last_s, PLAN.window_end_s)


def test_what_is_not_answered_in_time_is_an_error() -> None:
    result = run_virtually(make_run(FakeEngine(prompt_token_s=9.0), replace(PLAN, drain_limit_s=10.0)))
    errors = [record.error for record in result.online]
    assert errors[0] is None
    assert errors[-1] == "not answered 10 s after the last arrivals"
    assert result.online[-1].ended_s == pytest.approx(22.0)


def test_failures_are_recorded_and_end_their_lane() -> None:
    engine = FakeEngine()
    engine.failure = ConnectionError("gone")
    result = run_virtually(make_run(engine, backlog()))
    assert {record.error for record in result.online} == {"ConnectionError: gone"}
    assert [record.error for record in result.offline] == ["ConnectionError: gone"] * 3
    assert result.ttft_groups == []


def test_an_output_that_is_too_short_is_an_error() -> None:
    class ShortEngine(FakeEngine):
        async def generate(self, prompt_token_ids: Any, max_tokens: int, *, online: bool) -> Any:
            async for tokens in super().generate(prompt_token_ids, max_tokens - 1, online=online):
                yield tokens
            yield 0

    result = run_virtually(make_run(ShortEngine(), PLAN))
    assert {record.error for record in result.online} == {"2 of 3 tokens came"}
    assert {len(record.events) for record in result.online} == {2}


def test_settings_are_made_and_kept_for_the_report() -> None:
    engine = FakeEngine()
    knobs = Knobs(ttft_slo_ms=math.inf, max_num_batched_tokens=128)
    objective = Objective(ttft_slo_ms=5, tbt_slo_ms=6)
    result = run_virtually(make_run(engine, replace(PLAN, knobs=knobs, objective=objective)))
    assert engine.knobs_seen == [knobs]
    assert engine.resets == 1
    assert result.knobs == {"max_num_batched_tokens": 128}
    assert result.objective == objective


def test_an_engine_that_is_not_idle_is_given_time() -> None:
    engine = FakeEngine()
    failures = 5

    async def reset() -> None:
        nonlocal failures
        failures -= 1
        if failures:
            raise RuntimeError("in use")

    engine.reset_prefix_cache = reset  # type: ignore[method-assign]
    assert run_virtually(make_run(engine, PLAN)).measured_online
    failures = 10_000
    with pytest.raises(RunError, match="not idle 30 s after the last run: in use"):
        run_virtually(make_run(engine, PLAN))


def test_an_engine_that_is_gone_is_said_to_be() -> None:
    engine = FakeEngine()

    async def reset() -> None:
        raise ConnectionError("process 7 has died")

    engine.reset_prefix_cache = reset  # type: ignore[method-assign]
    with pytest.raises(RunError, match="the engine failed: ConnectionError: process 7 has died"):
        run_virtually(make_run(engine, PLAN))


def test_an_interrupted_run_leaves_no_request_behind() -> None:
    engine = FakeEngine()
    engine.hangs = True

    async def interrupt() -> None:
        task = asyncio.create_task(make_run(engine, backlog()))
        await asyncio.sleep(6.5)
        assert engine.in_flight[True] == 5
        assert engine.in_flight[False] == 3
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtually(interrupt())
    assert engine.in_flight == {True: 0, False: 0}
