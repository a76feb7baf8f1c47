from __future__ import annotations

import io

import pytest
from rich.console import Console

from loadtests.coserving.figures import Bound, Figure, list_figures
from loadtests.coserving.table import print_workload
from loadtests.report import (
    CalibrationReport,
    Objectives,
    OnlineLoad,
    Percentiles,
    Ratio,
    Report,
    RunReport,
    SlowRequests,
)

ALONE = RunReport(
    ttft_ms=Percentiles(p50=90, p90=200, p99=300),
    tbt_ms=Percentiles(p50=20, p90=30, p99=40),
    online_requests=120,
    online_errors=0,
    total_tokens_per_s=200.0,
    total_prompt_tokens_per_s=160.0,
    total_output_tokens_per_s=40.0,
)
TUNED = ALONE.model_copy(
    update={"offline_tokens_per_s": 500.0, "knobs": {"max_num_batched_tokens": 256.0}, "preemptions": 3}
)
CEILING = ALONE.model_copy(update={"offline_tokens_per_s": 600.0, "total_tokens_per_s": 800.0})
OURS = RunReport(
    duration_s=120.0,
    ttft_ms=Percentiles(p50=100, p90=300, p99=12_345),
    tbt_ms=Percentiles(p50=22, p90=33, p99=48),
    send_lag_ms=Percentiles(p50=1, p90=2, p99=3),
    slo_attainment=0.91,
    ttft_slo_attainment=0.93,
    tbt_slo_attainment=0.95,
    online_requests=118,
    online_errors=2,
    offline_tokens_per_s=400.0,
    offline_prompt_tokens_per_s=380.0,
    offline_output_tokens_per_s=20.0,
    total_tokens_per_s=600.0,
    preemptions=17,
    online_preemptions=1,
    offline_preemptions=16,
    recomputed_tokens=480,
    iterations=1_200,
    mixed_iterations=600,
    offline_iterations=300,
    over_budget_iterations=30,
    offline_scheduled_tokens=48_000,
    schedule_s=0.6,
    latency_model_error=0.05,
    latency_model_error_p95=0.3,
    slow_requests=SlowRequests(
        requests=12,
        ttft_ms=5_000,
        all_ttft_ms=700,
        prompt_tokens=200,
        all_prompt_tokens=130,
        online_before=4.2,
        all_online_before=1.5,
    ),
)
RATIOS = {
    "ttft_p99_vs_online_only": Ratio(median=41.0, min=30.0, max=50.0),
    "tbt_p99_vs_online_only": Ratio(median=1.2, min=1.1, max=1.4),
    "ttft_p99_vs_stock_tuned": Ratio(median=0.2),
    "tbt_p99_vs_stock_tuned": Ratio(median=0.5),
    "offline_vs_stock_tuned": Ratio(median=0.8, min=0.7, max=0.9, interval="repeats", repeat_median=0.81),
    "total_vs_online_only": Ratio(median=3.0),
}
REPORT = Report(
    machine="a machine",
    model="smol",
    workload="chat",
    source="generated",
    repeats=3,
    objectives=Objectives(ttft_ms=375, tbt_ms=50, tightness=1.25),
    online_load=OnlineLoad(share=0.3, capacity_requests_per_s=4.0, requests_per_s=1.2),
    calibration=[
        CalibrationReport(
            grid="stock-tuned",
            mode="stock",
            knobs={"max_num_batched_tokens": 256.0},
            duration_s=16,
            online_requests=10,
            offline_tokens_per_s=500,
            offline_prompt_tokens_per_s=450,
            offline_output_tokens_per_s=50,
            chosen=True,
        )
    ],
    notes=["Half of the cores were busy with other work."],
    runs={
        "online-only": ALONE,
        "stock-tuned": TUNED,
        "ceiling": CEILING,
        "conserve": OURS,
        "no-token-budget": OURS,
    },
    ratios=RATIOS,
)


def show(report: Report) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_workload(console, report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def verdicts(report: Report) -> dict[str, str]:
    return {figure.label.strip(): figure.verdict for figure in list_figures(report)}


def row_of(printed: str, label: str) -> list[str]:
    return next(line.split() for line in printed.splitlines() if line.strip().startswith(label))


def test_verdicts_follow_what_must_be_and_what_would_be_good() -> None:
    assert verdicts(REPORT) == {
        "P99 TBT / online-only": "met",
        "P99 TTFT / online-only": "missed",
        "P99 TTFT / stock-tuned": "goal met",
        "P99 TBT / stock-tuned": "met",
        "Offline tok/s / stock-tuned": "missed",
        "Offline tok/s, % of ceiling": "not measured",
        "All tok/s / online-only": "met",
        "prompt / online-only": "not measured",
        "output / online-only": "not measured",
        "Tokens computed in vain, %": "goal met",
        "Online errors": "missed",
        "Latency model error, median, %": "met",
        "Latency model error, p95, %": "missed",
    }


def test_each_workload_has_the_figures_that_are_stated_for_it() -> None:
    pressure = verdicts(REPORT.model_copy(update={"workload": "pressure"}))
    assert pressure["P99 TTFT / stock-coserve"] == "not measured"
    assert "P99 TTFT / online-only" not in pressure
    assert "P99 TBT / stock-tuned" in pressure
    bursty = verdicts(REPORT.model_copy(update={"workload": "bursty"}))
    assert "P99 TTFT / online-only" in bursty
    assert "All tok/s / online-only" not in bursty
    busier = OnlineLoad(share=0.5, capacity_requests_per_s=4.0, requests_per_s=2.0)
    assert "All tok/s / online-only" not in verdicts(REPORT.model_copy(update={"online_load": busier}))


def test_the_relaxed_run_is_held_to_the_tuned_stock_engine() -> None:
    relaxed = OURS.model_copy(update={"knobs": {"ttft_slo_ms": 1_200.0, "tbt_slo_ms": 300.0}})
    report = REPORT.model_copy(
        update={
            "runs": {**REPORT.runs, "conserve-relaxed": relaxed},
            "ratios": {**RATIOS, "relaxed_offline_vs_stock_tuned": Ratio(median=0.9, min=0.8, max=1.0)},
        }
    )
    assert verdicts(report)["Relaxed: offline tok/s / stock-tuned"] == "missed"
    assert not any(label.startswith("Relaxed") for label in verdicts(REPORT))
    printed = show(report)
    assert max(len(line) for line in printed.splitlines()) <= 120
    assert (
        "conserve-relaxed is told to keep TTFT 1,200 ms and TBT 300 ms, nine tenths of the P99 of stock-tuned"
        in printed
    )


@pytest.mark.parametrize(
    ("bound", "inside", "outside"),
    [(Bound("<= 2.5", 2.5), 2.5, 2.51), (Bound("< 1", 1), 0.99, 1.0), (Bound(">= 75 %", 75), 75.0, 74.9)],
)
def test_a_bound_itself_counts_as_it_is_stated(bound: Bound, inside: float, outside: float) -> None:
    assert bound.holds(inside)
    assert not bound.holds(outside)


def test_a_verdict_is_unsure_where_the_interval_crosses_the_bound() -> None:
    bound = Bound("<= 1.3", 1.3)
    assert Figure("f", "tbt", bound, None, Ratio(median=1.2, min=1.1, max=1.4)).unsure
    assert Figure("f", "tbt", bound, None, Ratio(median=1.4, min=1.2, max=1.5)).unsure
    assert not Figure("f", "tbt", bound, None, Ratio(median=1.2, min=1.1, max=1.3)).unsure
    assert not Figure("f", "tbt", bound, None, Ratio(median=1.2)).unsure
    assert not Figure("f", "tbt", bound, None, None).unsure


def test_the_goal_of_all_tokens_is_what_the_ceiling_reaches() -> None:
    total = next(figure for figure in list_figures(REPORT) if figure.label.startswith("All"))
    assert total.goal == Bound(">= 4.00", 4.0)


def test_the_tables_fit_120_columns_and_cut_nothing() -> None:
    printed = show(REPORT)
    assert max(len(line) for line in printed.splitlines()) <= 120
    assert "…" not in printed
    values = ["100", "300", "12,345", "22", "33", "48", "91", "%", "2", "380", "20.0", "600", "17"]
    assert row_of(printed, "conserve ") == ["conserve", *values]
    assert row_of(printed, "no-token-budget") == ["no-token-budget", *values]
    assert row_of(printed, "online-only")[-5:] == ["0", "-", "-", "200", "-"]
    for text in (
        *("TTFT 375 ms, TBT 50 ms, 1.25x the P99 of online-only", "1.20 requests/s on average, 30 % of the 4.00"),
        *("stock-tuned: max_num_batched_tokens 256 (best of 1 settings)", "118 to 120 online requests a run"),
        *("Half of the cores were busy with other work.", "met, unsure", "0.70 to 0.90"),
        "failed or were given up",
    ):
        assert text in printed


def test_losses_are_told_of_what_was_missed_alone() -> None:
    printed = " ".join(show(REPORT).split())
    losses = printed[printed.index("Where the time goes") :]
    for text in (
        "P99 TTFT: online-only 300 ms, stock-tuned 300 ms, ceiling 300 ms, conserve 12,345 ms, ",
        "93.0 % of the requests had their first token within the objective of 375 ms.",
        "conserve: the slowest tenth (12) took 5,000 ms on average (all: 700), had prompts of 200 tokens (all: 130) "
        "and came while 4.2 other online requests were unanswered (all: 1.5).",
        "The client itself sent them late by 3.0 ms (p99)",
        "Offline tokens/s: conserve 400, ceiling 600, stock-tuned 500.",
        "conserve: 10.0 iterations a second; 50.0 % mixed, 25.0 % offline only, 25.0 % without offline requests; "
        "53.3 offline tokens in each of the former two on average.",
        "conserve: 480 computed tokens were lost to preemptions, 1.0 % of the 48,000 offline tokens scheduled.",
        "conserve: the scheduler took 0.50 ms an iteration, 0.5 % of the time.",
        "Preempted: 16 offline and 1 online requests.",
        "conserve: the latency model errs by 5.0 % (median) and 30.0 % (p95)",
    ):
        assert text in losses
    assert "P99 TBT:" not in losses
    slower = REPORT.model_copy(update={"ratios": {"tbt_p99_vs_online_only": Ratio(median=2.0)}})
    losses = " ".join(show(slower).split())
    assert "P99 TTFT:" not in losses
    assert "600 of 1,200 iterations (50.0 %) had online and offline requests; 30 of these (5.0 %) took longer" in losses


def test_nothing_missed_needs_no_explanation() -> None:
    good = OURS.model_copy(update={"latency_model_error_p95": 0.1, "online_errors": 0})
    assert "Where the time goes" not in show(REPORT.model_copy(update={"ratios": {}, "runs": {"conserve": good}}))
