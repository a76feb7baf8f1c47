from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from conserve.engine.options import Objective
from conserve.engine.page import Counters
from loadtests.coserving.results import (
    CalibrationPoint,
    OfflineRecord,
    OnlineRecord,
    OutputEvent,
    RunResult,
    TokenRates,
    WorkloadResults,
)
from loadtests.coserving.summary import compare_runs, describe_run, make_report, write_workload_report
from loadtests.report import read_report

OBJECTIVE = Objective(ttft_slo_ms=250, tbt_slo_ms=150)


def online(due_s: float, ttft_s: float, *gaps_s: float, prompt: int = 20, error: str | None = None) -> OnlineRecord:
    times_s = [due_s + ttft_s]
    for gap_s in gaps_s:
        times_s.append(times_s[-1] + gap_s)
    events = tuple(OutputEvent(time_s, 1) for time_s in times_s)
    return OnlineRecord(due_s, due_s + 0.002, events, prompt, len(events), times_s[-1], error)


def offline(first_s: float, ended_s: float | None, *, prompt: int = 100, output: int = 10) -> OfflineRecord:
    events = (OutputEvent(first_s, 1), OutputEvent(ended_s, output - 1)) if ended_s else (OutputEvent(first_s, 1),)
    return OfflineRecord(first_s - 1, events, prompt, output, ended_s)


def make_run(run: str, repeat: int = 1, **fields: object) -> RunResult:
    """Measured from 10 to 20 s."""
    plain = RunResult(run, repeat, "chat", 7, "stock", 10.0, 20.0, (), (), Counters(), Counters(), 5)
    return replace(plain, **fields)  # type: ignore[arg-type]


# The first one is due before the window: no latency, but its last token counts.
ALONE = make_run(
    "online-only",
    online=(online(9.0, 0.9, 0.3, prompt=1_000), online(11.0, 0.1, 0.1, 0.1), online(15.0, 0.3, 0.1, prompt=40)),
)
OURS = make_run(
    "conserve",
    mode="conserve",
    online=(online(9.9, 1.2, 0.3), online(11.0, 0.2, 0.1, 0.2), online(15.0, 0.6, 0.1, prompt=40)),
    # Computed before the window but ended in it; within it; in it but cancelled; after it.
    offline=(offline(9.0, 12.0), offline(13.0, 15.0), offline(19.0, None), offline(21.0, 22.0)),
    objective=OBJECTIVE,
    peak_memory_bytes=7,
    counters_before=Counters(iterations=100, mixed_iterations=5, offline_preemptions=2, schedule_s=1.0),
    counters_after=Counters(
        iterations=300,
        mixed_iterations=95,
        offline_iterations=50,
        offline_prefill_tokens=400,
        offline_decode_tokens=20,
        offline_cached_tokens=60,
        offline_preemptions=6,
        online_preemptions=1,
        offline_recomputed_tokens=40,
        online_recomputed_tokens=2,
        model_ready=1,
        model_error_median=0.05,
        model_error_p95=0.2,
        over_budget_iterations=9,
        schedule_s=1.5,
    ),
)


def make_results(*runs: RunResult, **fields: object) -> WorkloadResults:
    plain = WorkloadResults(
        *("chat", "cpu", "a machine", "smol", {"max_num_seqs": 16}, "generated", 7, 1, 1.25, 4.0, 0.3, 1.2, 10.0),
        objective=OBJECTIVE,
        runs=runs,
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def test_a_run_has_the_latencies_of_its_window_and_the_tokens_of_its_window() -> None:
    run = describe_run([ALONE], OBJECTIVE)
    assert run.ttft_ms is not None
    assert run.tbt_ms is not None
    assert run.send_lag_ms is not None
    assert (run.ttft_ms.p50, run.ttft_ms.p99) == (pytest.approx(200), pytest.approx(298))
    assert run.tbt_ms.p99 == pytest.approx(100)
    assert run.send_lag_ms.p90 == pytest.approx(2)
    assert (run.online_requests, run.online_errors) == (2, 0)
    # Of the first request only the token at 10.2 s lies within; its prompt was computed at 9.9 s.
    assert run.online_prompt_tokens_per_s == pytest.approx((20 + 40) / 10)
    assert run.online_output_tokens_per_s == pytest.approx((1 + 3 + 2) / 10)
    assert run.total_tokens_per_s == run.online_tokens_per_s == pytest.approx(6.6)
    assert run.slo_attainment == run.ttft_slo_attainment == 0.5
    assert run.tbt_slo_attainment == 1


def test_offline_rates_are_those_of_the_window() -> None:
    run = describe_run([OURS], OBJECTIVE)
    # What was computed or found in the prefix cache, without what was computed again.
    assert run.offline_prompt_tokens_per_s == pytest.approx((400 + 60 - 40) / 10)
    assert run.offline_output_tokens_per_s == pytest.approx((9 + 10 + 1) / 10)
    assert run.offline_tokens_per_s == pytest.approx(44)
    assert (run.offline_requests, run.offline_requests_per_s, run.offline_failed) == (2, pytest.approx(0.2), 0)
    assert run.total_prompt_tokens_per_s == pytest.approx(42 + (20 + 20 + 40) / 10)
    assert run.total_output_tokens_per_s == pytest.approx(2 + (2 + 3 + 2) / 10)


def test_counters_are_those_of_the_window() -> None:
    run = describe_run([OURS, replace(OURS, repeat=2)], OBJECTIVE)
    assert (run.repeats, run.duration_s, run.peak_memory_bytes) == (2, 20, 7)
    assert (run.iterations, run.mixed_iterations, run.offline_iterations) == (400, 180, 100)
    assert (run.preemptions, run.offline_preemptions, run.online_preemptions) == (10, 8, 2)
    assert (run.recomputed_tokens, run.offline_scheduled_tokens, run.over_budget_iterations) == (84, 840, 18)
    assert run.schedule_s == pytest.approx(1.0)
    assert (run.latency_model_error, run.latency_model_error_p95) == (0.05, 0.2)


def test_what_was_not_there_is_not_known() -> None:
    known = set(describe_run([ALONE], None).model_dump(exclude_none=True))
    assert not {name for name in known if "offline" in name or "slo_" in name or "iterations" in name}
    known = set(describe_run([make_run("offline-only", offline=OURS.offline)], OBJECTIVE).model_dump(exclude_none=True))
    assert not {name for name in known if "online" in name or "slo_" in name or "ttft" in name}


def test_a_failed_request_is_an_error_that_keeps_no_objective() -> None:
    failed = online(12.0, 0.01, 0.01, error="broken")
    run = describe_run([replace(ALONE, online=(*ALONE.online, failed))], OBJECTIVE)
    assert (run.online_requests, run.online_errors) == (2, 1)
    assert run.slo_attainment == run.ttft_slo_attainment == pytest.approx(1 / 3)
    assert run.ttft_ms is not None
    assert run.ttft_ms.p50 == pytest.approx(200)


def test_the_slowest_tenth_is_set_beside_all() -> None:
    # One a second, each done after 0.1 s but the last, which is long, slow and comes before the tenth has ended.
    records = [online(10.0 + index, 0.1) for index in range(9)]
    records += [online(18.05, 0.4, prompt=120)]
    slow = describe_run([make_run("conserve", online=tuple(records))], OBJECTIVE).slow_requests
    assert slow is not None
    assert (slow.requests, slow.prompt_tokens, slow.all_prompt_tokens) == (1, 120, 30)
    assert (slow.online_before, slow.all_online_before) == (1, pytest.approx(0.1))
    assert (slow.ttft_ms, slow.all_ttft_ms) == (pytest.approx(400), pytest.approx(130))


def test_latencies_are_compared_pooled_and_rates_over_all_seconds() -> None:
    shorter = replace(OURS, repeat=2, window_end_s=14.0)
    counted = Counters(offline_prefill_tokens=200)
    tuned = make_run("stock-tuned", online=ALONE.online, offline=(offline(12.0, 13.0),), counters_after=counted)
    ratios = compare_runs(make_results(ALONE, OURS, tuned, replace(ALONE, repeat=2), shorter, replace(tuned, repeat=2)))
    # Pooled TTFT 200, 600, 200 ms above 100, 300, 100, 300 ms.
    ttft = ratios["ttft_p50_vs_online_only"]
    assert (ttft.median, ttft.interval) == (pytest.approx(1), "bootstrap")
    assert [ttft.repeat_min, ttft.repeat_median, ttft.repeat_max] == pytest.approx([1, 1.5, 2])
    assert ttft.min is not None
    assert ttft.max is not None
    assert ttft.min < 1 < ttft.max
    # 440 tokens in 10 s and 430 in 4 s, above 210 in 10 s, twice.
    rate = ratios["offline_vs_stock_tuned"]
    assert rate.median == pytest.approx((870 / 14) / 21)
    assert (rate.min, rate.max) == (pytest.approx(44 / 21), pytest.approx(107.5 / 21))
    assert (rate.repeat_median, rate.interval) == (pytest.approx((44 + 107.5) / 21 / 2), "repeats")


def test_the_relaxed_run_has_ratios_of_its_own() -> None:
    counted = Counters(offline_prefill_tokens=200)
    tuned = make_run("stock-tuned", online=ALONE.online, offline=(offline(12.0, 13.0),), counters_after=counted)
    ratios = compare_runs(make_results(ALONE, replace(OURS, run="conserve-relaxed"), tuned))
    assert ratios["relaxed_offline_vs_stock_tuned"].median == pytest.approx(44 / 21)
    assert ratios["relaxed_ttft_p99_vs_stock_tuned"].median > 1
    assert not any(name.startswith(("ttft", "tbt", "offline")) for name in ratios)


def test_one_repeat_gives_rates_no_interval_and_absent_runs_no_ratio() -> None:
    counted = Counters(offline_prefill_tokens=540)
    ceiling = make_run("ceiling", offline=(offline(12.0, 13.0, prompt=265),), counters_after=counted)
    ratios = compare_runs(make_results(ALONE, OURS, ceiling))
    optimum = ratios["offline_percent_of_optimum"]
    assert (optimum.median, optimum.min, optimum.interval) == (pytest.approx(100 * 440 / 550), None, None)
    assert ratios["total_vs_online_only"].median == pytest.approx((44 + 8.7) / 6.6)
    assert ratios["prompt_vs_online_only"].median == pytest.approx((42 + 8) / 6)
    assert ratios["output_vs_online_only"].median == pytest.approx(2.7 / 0.6)
    assert set(ratios) == {
        *(f"{latency}_p{at}_vs_online_only" for latency in ("ttft", "tbt") for at in (50, 99)),
        *("total_vs_online_only", "prompt_vs_online_only", "output_vs_online_only", "offline_percent_of_optimum"),
    }


def test_both_sides_of_a_ratio_have_the_same_repeats() -> None:
    slow = replace(ALONE, repeat=2, online=(online(11.0, 9.0),))
    ratios = compare_runs(make_results(ALONE, OURS, slow))
    assert ratios == compare_runs(make_results(ALONE, OURS))
    assert compare_runs(make_results(slow, OURS)) == {}


def test_a_rate_of_nothing_is_no_denominator() -> None:
    idle = make_run("stock-tuned", offline=(offline(21.0, 22.0),))
    assert "offline_vs_stock_tuned" not in compare_runs(make_results(OURS, idle))


def test_the_report_says_how_it_was_measured(tmp_path: Path) -> None:
    point = CalibrationPoint("stock", {"max_num_batched_tokens": 256.0}, 16.0, 9, 1.0, 2.0, None, TokenRates(9.0, 1.0))
    results = make_results(
        OURS, ALONE, tuning=(point, replace(point, chosen=True)), frontier=(point,), notes=("A note.",)
    )
    console = Console(file=io.StringIO(), width=120)
    report = write_workload_report(results, tmp_path, console)
    assert read_report(tmp_path / "chat.json") == report == make_report(results)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("chat.json", "chat.png", "chat.svg", "chat-frontier.png", "chat-frontier.svg"),
    }
    content = json.loads((tmp_path / "chat.json").read_text())
    assert content["objectives"] == {"ttft_ms": 250, "tbt_ms": 150, "tightness": 1.25}
    assert content["online_load"] == {"share": 0.3, "capacity_requests_per_s": 4.0, "requests_per_s": 1.2}
    assert [(each["grid"], each["chosen"]) for each in content["calibration"]] == [
        *(("stock-tuned", False), ("stock-tuned", True), ("frontier", False)),
    ]
    assert content["calibration"][0]["offline_tokens_per_s"] == 10
    assert list(content["runs"]) == ["online-only", "conserve"]
    assert (content["repeats"], content["notes"]) == (1, ["A note."])
    assert isinstance(console.file, io.StringIO)
    assert "online-only" in console.file.getvalue()


def test_a_workload_without_runs_is_reported_as_such(tmp_path: Path) -> None:
    report = write_workload_report(make_results(objective=None), tmp_path, Console(file=io.StringIO()))
    assert (report.runs, report.ratios, report.objectives, report.repeats) == ({}, {}, None, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]


def test_a_ceiling_below_stock_is_noted() -> None:
    counted = Counters(offline_prefill_tokens=300)
    ceiling = make_run("ceiling", offline=(offline(12.0, 13.0),), counters_after=counted)
    tuned = make_run("stock-tuned", offline=(offline(12.0, 13.0),), counters_after=replace(counted, iterations=1))
    assert make_report(make_results(ALONE, OURS, ceiling, tuned)).notes is None
    better = replace(tuned, counters_after=Counters(offline_prefill_tokens=400))
    (note,) = make_report(make_results(ALONE, OURS, ceiling, better)).notes or ()
    assert "31 tokens/s; stock-tuned 41" in note
