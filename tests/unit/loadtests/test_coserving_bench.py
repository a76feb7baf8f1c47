"""A whole workload on fake engines, in virtual time: which runs are made, with which settings, and what is kept."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from conserve.config import EngineSettings
from loadtests.coserve import QUICK_PASS_S
from loadtests.coserving import results as names
from loadtests.coserving.bench import WorkloadBench
from loadtests.coserving.calibration import FINALISTS, TuningTimes, list_batch_sizes
from loadtests.coserving.catalog import WORKLOADS
from loadtests.coserving.driver import CoServingEngine, RunError
from loadtests.coserving.kept import KeptResultError, keep_run, keep_workload, read_kept
from loadtests.coserving.plan import (
    BenchOptions,
    estimate_s,
    find_objective,
    longest_s,
    order_runs,
    plan_times,
    relax_objective,
)
from loadtests.coserving.progress import BenchProgress
from loadtests.coserving.prompts import PromptMaker
from loadtests.coserving.results import RUNS, WorkloadResults
from loadtests.coserving.timing import LONGEST_S, START_S, choose_duration, window_s
from loadtests.coserving.workloads import Workload
from loadtests.trace_source import TraceSource
from tests.unit.loadtests.fake_engine import FakeEngine, run_virtually

CHAT = WORKLOADS["chat", "cpu"]
INTERRUPT = WORKLOADS["interrupt", "cpu"]
OPTIONS = BenchOptions(machine="a test", model="fake", repeats=2, duration_s=20.0, ablations=("token-budget",))


class Bench:
    """What a benchmark on fake engines leaves behind."""

    def __init__(
        self,
        raw: Path,
        options: BenchOptions = OPTIONS,
        failure: Exception | None = None,
        workload: Workload = CHAT,
    ) -> None:
        self.engines: dict[str, FakeEngine] = {}
        self.printed = io.StringIO()
        self.failure = failure
        self.progress = BenchProgress(Console(file=self.printed, width=200), 100)
        self.bench = WorkloadBench(
            workload, options, self.start, TraceSource(None), PromptMaker(list(range(100))), self.progress, raw
        )

    async def start(self, settings: EngineSettings) -> CoServingEngine:
        engine = FakeEngine(settings)
        engine.failure = self.failure
        self.engines[settings.mode] = engine
        return engine

    def run(self) -> WorkloadResults:
        with self.progress:
            return run_virtually(self.bench.run())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, WorkloadResults, Path]:
    raw = tmp_path_factory.mktemp("raw")
    bench = Bench(raw, replace(OPTIONS, frontier=True))
    return bench, bench.run(), raw


Made = tuple[Bench, WorkloadResults, Path]


def test_all_runs_are_made_interleaved(made: Made) -> None:
    _, results, _ = made
    runs = (*RUNS, "no-token-budget")
    assert [result.run for result in results.runs] == [*runs, *runs[2:], *runs[:2]]
    assert Counter(result.repeat for result in results.runs) == {1: 7, 2: 7}


def test_runs_of_a_repeat_have_the_same_requests_and_repeats_others(made: Made) -> None:
    _, results, _ = made

    def online_of(run: str, repeat: int) -> list[tuple[float, int, int]]:
        result = results.of(run)[repeat - 1]
        lead_s = min(record.intended_s for record in result.online)
        return [
            (round(record.intended_s - lead_s, 6), record.prompt_tokens, record.output_tokens)
            for record in result.online
        ]

    for run in (names.STOCK_COSERVE, names.STOCK_TUNED, names.CEILING, names.CONSERVE):
        assert online_of(run, 1) == online_of(names.ONLINE_ONLY, 1)
    assert online_of(names.CONSERVE, 1) != online_of(names.CONSERVE, 2)
    offline = {run: [record.prompt_tokens for record in results.of(run)[0].offline[:30]] for run in RUNS[1:]}
    assert len({tuple(lengths) for lengths in offline.values()}) == 1


def test_each_run_has_its_load_and_its_engine(made: Made) -> None:
    _, results, _ = made
    for result in results.runs:
        assert bool(result.online) == (result.run != names.OFFLINE_ONLY)
        assert bool(result.offline) == (result.run != names.ONLINE_ONLY)
        assert result.mode == ("stock" if result.run in RUNS[:4] else "conserve")
        assert result.window_s == (10 if result.run == names.OFFLINE_ONLY else 20)
    assert all(record.error is None for result in results.runs for record in result.measured_online)


def test_objectives_come_from_the_first_online_only_run(made: Made) -> None:
    bench, results, _ = made
    first = results.runs[0]
    assert first.run == names.ONLINE_ONLY
    slowest = max(value for group in first.ttft_groups for value in group)
    objective = results.objective
    assert objective is not None
    assert 0.9 * 1.25 * slowest < objective.ttft_slo_ms <= 1.25 * slowest
    assert objective.tbt_slo_ms == pytest.approx(1.25 * 30)
    told = {result.objective for result in results.runs if result.run.startswith("conserve")}
    assert told == {objective}
    ours = [knobs for knobs in bench.engines["conserve"].knobs_seen if knobs.ttft_slo_ms == objective.ttft_slo_ms]
    assert {knobs.tbt_slo_ms for knobs in ours} == {objective.tbt_slo_ms}
    assert sum(knobs.token_budget_off for knobs in ours) == 2


def test_relaxed_objectives_are_just_below_what_tuned_stock_takes(tmp_path: Path) -> None:
    results = Bench(tmp_path, replace(OPTIONS, relaxed=True, ablations=())).run()
    tuned = results.of(names.STOCK_TUNED)[0]
    relaxed = [result.objective for result in results.of(names.RELAXED)]
    assert relaxed == [find_objective(tuned, 0.9)] * 2
    with pytest.raises(ValueError, match="stock-tuned comes before conserve-relaxed"):
        relax_objective(replace(results, runs=results.runs[:1]))


def test_stock_and_ceiling_use_what_was_found(made: Made) -> None:
    bench, results, _ = made
    tuned, size = ([point for point in points if point.chosen] for points in (results.tuning, results.ceiling_sizes))
    assert len(tuned) == len(size) == 1
    assert results.of(names.STOCK_TUNED)[0].knobs == tuned[0].knobs
    assert results.of(names.STOCK_COSERVE)[0].knobs == {}
    assert results.of(names.CEILING)[1].knobs == size[0].knobs
    assert results.of(names.CEILING)[1].objective is None
    unlimited = [knobs for knobs in bench.engines["conserve"].knobs_seen if math.isinf(knobs.ttft_slo_ms)]
    assert len(unlimited) == len(results.ceiling_sizes) + 2
    assert all(math.isinf(knobs.tbt_slo_ms) for knobs in unlimited)
    assert not any(knobs.ttft_slo_ms for knobs in bench.engines["stock"].knobs_seen)


def test_the_load_is_a_share_of_the_capacity(made: Made) -> None:
    _, results, _ = made
    assert results.capacity_per_s > 1
    assert results.online_rate_per_s == pytest.approx(0.3 * results.capacity_per_s)
    measured = len(results.runs[0].measured_online)
    assert measured == pytest.approx(20 * results.online_rate_per_s, rel=0.35)


def test_the_frontier_is_explored_on_both_engines(made: Made) -> None:
    _, results, _ = made
    assert [(point.mode, *point.knobs.items()) for point in results.frontier if point.mode == "stock"] == [
        ("stock", ("max_num_batched_tokens", size)) for size in list_batch_sizes(CHAT.engine)
    ]
    ours = [point for point in results.frontier if point.mode == "conserve"]
    sizes = [(point.knobs["offline_pass_tokens"], bool(point.knobs.get("safepoints_off"))) for point in ours]
    assert sizes == [(size, off) for size in list_batch_sizes(CHAT.engine) for off in (False, True)]
    assert all(point.knobs["full_passes"] for point in ours)
    assert {point.knobs["ttft_slo_ms"] for point in ours} == {results.objective and results.objective.ttft_slo_ms}


def test_a_workload_has_runs_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, replace(OPTIONS, repeats=1, ablations=("resume",)), workload=INTERRUPT)
    results = bench.run()
    runs = [result.run for result in results.runs]
    assert runs == [*RUNS, "no-resume", *(run for run in INTERRUPT.further_runs if run != "no-resume")]
    (full,) = results.of(names.FULL_PASSES_NO_SAFEPOINTS)
    assert (full.knobs["full_passes"], full.knobs["safepoints_off"]) == (1, 1)
    assert full.objective == results.objective
    (alone,) = results.of(names.ALONE)
    assert alone.offline
    assert not alone.online
    assert alone.objective is None


def test_everything_is_kept(made: Made) -> None:
    bench, results, raw = made
    assert read_kept(raw) == results
    assert len(list(raw.iterdir())) == 15
    assert all(engine.closed for engine in bench.engines.values())
    assert "run 9 of 14: stock-tuned, repeat 2 of 2" in bench.printed.getvalue()


def test_too_few_online_requests_are_noted(made: Made) -> None:
    _, results, _ = made
    expected = 20 * results.online_rate_per_s
    assert (len(results.notes) == 1) == (expected < 100)


def test_what_a_broken_off_benchmark_made_can_be_read(made: Made, tmp_path: Path) -> None:
    _, results, _ = made
    keep_workload(tmp_path, replace(results, objective=None))
    keep_run(tmp_path, results.runs[0], 1)
    kept = read_kept(tmp_path)
    assert kept.runs == results.runs[:1]
    (tmp_path / "001-online-only-1.json").write_text('{"run": 1}')
    with pytest.raises(KeptResultError, match=r"001-online-only-1.json: run: "):
        read_kept(tmp_path)
    with pytest.raises(KeptResultError, match="no such file"):
        read_kept(tmp_path / "elsewhere")


def test_an_engine_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    bench = Bench(tmp_path, failure=ConnectionError("gone"))
    with pytest.raises(RunError, match="the engine failed: ConnectionError: gone"):
        bench.run()
    assert all(engine.closed for engine in bench.engines.values())


def test_every_repeat_begins_with_another_run() -> None:
    orders = [order_runs(RUNS, repeat) for repeat in (1, 2, 3, 4)]
    assert orders[0][0] == names.ONLINE_ONLY
    assert [order[0] for order in orders] == [RUNS[0], RUNS[2], RUNS[4], RUNS[0]]
    assert all(sorted(order) == sorted(RUNS) for order in orders)


def test_chat_and_pressure_take_no_more_than_forty_minutes() -> None:
    options = BenchOptions(machine="", model="", pass_limit_s=QUICK_PASS_S)
    planned_s = [estimate_s(WORKLOADS[name, "cpu"], options) for name in ("chat", "pressure")]
    assert sum(planned_s) <= 2_400
    for name in ("chat", "pressure"):
        times = plan_times(WORKLOADS[name, "cpu"], options)
        before_s = 2 * START_S + times.calibration_s(TuningTimes(8.0, 24.0), FINALISTS)
        assert longest_s(times, options, before_s) > 35, "there is no time left for the runs"
        assert longest_s(times, replace(options, pass_limit_s=None), before_s) == LONGEST_S


def test_windows_are_as_long_as_needed_and_possible() -> None:
    assert choose_duration(120, rate_per_s=2.0, longest_s=200) == 120
    assert choose_duration(120, rate_per_s=0.7, longest_s=200) == pytest.approx(100 / 0.7)
    assert choose_duration(120, rate_per_s=0.1, longest_s=200) == 200
    assert choose_duration(120, rate_per_s=0.1, longest_s=-5) == 10
    assert window_s(names.OFFLINE_ONLY, 120) == 60
