"""One workload, from the first calibration to the last repeat, on two engines that are started once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Final

from conserve.config import EngineSettings
from conserve.engine.page import Knobs
from loadtests.coserving import calibration, results, timing
from loadtests.coserving.calibration import TuningTimes, find_chosen, list_batch_sizes, list_stock_sizes
from loadtests.coserving.driver import CoServingEngine, RunError, RunPlan, make_run
from loadtests.coserving.kept import keep_run, keep_workload
from loadtests.coserving.plan import (
    BenchOptions,
    RunSettings,
    choose_settings,
    find_objective,
    list_runs,
    longest_s,
    order_runs,
    plan_times,
    with_objective,
)
from loadtests.coserving.progress import BenchProgress
from loadtests.coserving.prompts import PromptMaker
from loadtests.coserving.results import CalibrationPoint, RunResult, WorkloadResults
from loadtests.coserving.workloads import Workload
from loadtests.latency import percentiles, pool
from loadtests.trace_source import TraceSource

CALIBRATION_SEED: Final = 1_000_003
"""Added to the seed for what is measured before the runs."""

StartEngine = Callable[[EngineSettings], Awaitable[CoServingEngine]]


class WorkloadBench:
    """Runs one workload and keeps what it measures as it goes.

    Args:
        workload: The workload.
        options: What to run.
        start_engine: Starts an engine; its settings say in which mode.
        source: Of the online requests.
        prompts: Makes prompts of the model's tokens.
        progress: Told of each step.
        raw: Folder of the kept results.
        later_s: How long what comes after this workload is planned to take.
    """

    def __init__(
        self,
        workload: Workload,
        options: BenchOptions,
        start_engine: StartEngine,
        source: TraceSource,
        prompts: PromptMaker,
        progress: BenchProgress,
        raw: Path,
        later_s: float = 0.0,
    ) -> None:
        self._workload = workload
        self._options = options
        self._start_engine = start_engine
        self._source = source
        self._prompts = prompts
        self._progress = progress
        self._raw = raw
        self._later_s = later_s
        self._times = plan_times(workload, options)
        self._engines: dict[str, CoServingEngine] = {}
        self._results = WorkloadResults(
            workload=workload.name,
            size=workload.size,
            machine=options.machine,
            model=options.model,
            engine=workload.engine.model_dump(mode="json", exclude_defaults=True),
            source=workload.name_source(source),
            seed=options.seed,
            repeats=options.repeats,
            tightness=options.tightness,
            capacity_per_s=0.0,
            online_share=workload.online_share,
            online_rate_per_s=0.0,
            duration_s=0.0,
        )

    async def run(self) -> WorkloadResults:
        """Starts the engines, calibrates, makes all runs, and stops the engines.

        Raises:
            RunError: a run cannot be used, or an engine hangs.
            TraceError: the trace is too short.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with AsyncExitStack() as stack:
            for mode in ("stock", "conserve"):
                settings = self._workload.engine.model_copy(update={"mode": mode})
                async with self._step(f"start the {mode} engine", timing.START_S):
                    engine = await self._start_engine(settings)
                    stack.push_async_callback(engine.close)
                self._engines[mode] = engine
            await self._calibrate()
            self._choose_duration(loop.time() - began_s)
            runs = list_runs(self._workload, self._options)
            for repeat in range(1, self._options.repeats + 1):
                for run in order_runs(runs, repeat):
                    await self._make(run, repeat)
            if self._options.frontier:
                await self._explore_frontier()
        return self._results

    async def _calibrate(self) -> None:
        workload = self._workload
        async with self._step("let the conserve engine learn what iterations take", timing.LEARN_S):
            await self._teach()
        async with self._step("online capacity", timing.CAPACITY_FILL_S + timing.CAPACITY_WINDOW_S):
            capacity_per_s = await self._measure_capacity()
        rate_per_s = workload.online_share * capacity_per_s
        self._results = replace(self._results, capacity_per_s=capacity_per_s, online_rate_per_s=rate_per_s)
        self._progress.say(
            f"the stock engine serves {capacity_per_s:.2f} online requests/s; "
            f"{workload.online_share:.0%} of it are {rate_per_s:.2f}/s"
        )
        settings = list_stock_sizes(workload.engine)
        tuning = await calibration.tune_stock(
            settings, self._measure_short("stock", "tune the stock engine"), TuningTimes.for_rate(rate_per_s)
        )
        sizes = await calibration.find_ceiling_size(
            list_batch_sizes(workload.engine),
            self._measure_short("conserve", "batch size of the ceiling"),
            timing.CEILING_WINDOW_S,
        )
        for name, points in ((results.STOCK_TUNED, tuning), (results.CEILING, sizes)):
            self._progress.say(f"{name}: {_describe_knobs(find_chosen(points).knobs)}")
        self._results = replace(self._results, tuning=tuple(tuning), ceiling_sizes=tuple(sizes))
        keep_workload(self._raw, self._results)

    async def _teach(self) -> None:
        """What `conserve profile` does, on the engine that runs already and for a shorter time."""
        from conserve.engine.profiler import ProfileError, design_round, drive  # vLLM takes 20 s to import

        engine = self._workload.engine
        longest = (engine.max_model_len or engine.max_num_batched_tokens) // 2
        bursts = design_round(engine.max_num_seqs, engine.max_num_batched_tokens, longest, self._options.seed)
        try:
            await drive(self._engines["conserve"], bursts, timing.LEARN_S, lambda share: None)
        except ProfileError as error:
            raise RunError(str(error)) from error

    async def _measure_capacity(self) -> float:
        """Online requests a second with always as many of them as the engine runs at a time, and nothing else."""
        seed = self._options.seed + CALIBRATION_SEED
        plan = RunPlan(
            run="capacity",
            repeat=1,
            workload=self._workload.name,
            seed=seed,
            mode="stock",
            window_start_s=timing.CAPACITY_FILL_S,
            window_end_s=timing.CAPACITY_FILL_S + timing.CAPACITY_WINDOW_S,
            knobs=Knobs(),
            offline=self._workload.draw_saturating(self._source, self._prompts, seed),
            offline_in_flight=self._workload.engine.max_num_seqs,
        )
        result = await make_run(self._engines["stock"], plan)
        _check(result)
        if not result.offline_finished:
            raise RunError(f"the stock engine finished no online request in {result.window_s:g} s")
        return result.offline_finished / result.window_s

    def _measure_short(
        self, mode: str, name: str, fill_s: float = timing.SHORT_FILL_S, lead_s: float = timing.SHORT_LEAD_S
    ) -> calibration.Measure:
        """Makes short runs, all of them with the same requests."""

        async def measure(knobs: Knobs, window_s: float) -> RunResult:
            plan = self._plan(
                name,
                RunSettings(mode, knobs),
                seed=self._options.seed + CALIBRATION_SEED,
                window_start_s=fill_s,
                window_s=window_s,
                lead_s=lead_s,
                loaded_drain_s=timing.SHORT_LOADED_DRAIN_S,
                drain_limit_s=timing.SHORT_DRAIN_LIMIT_S,
            )
            described = _describe_knobs(asdict(knobs))
            async with self._step(
                f"{name}: {described}", fill_s + window_s + timing.SHORT_LOADED_DRAIN_S + timing.SHORT_DRAIN_S
            ):
                result = await make_run(self._engines[mode], plan)
            return _check(result)

        return measure

    def _choose_duration(self, passed_s: float) -> None:
        options, workload, rate_per_s = self._options, self._workload, self._results.online_rate_per_s
        duration_s = options.duration_s
        if duration_s is None:
            left_s = longest_s(self._times, options, passed_s)
            duration_s = timing.choose_duration(workload.duration_s, rate_per_s, left_s)
        notes = self._results.notes
        if rate_per_s * duration_s < timing.WANTED_REQUESTS:
            notes = (
                *notes,
                f"A run has about {rate_per_s * duration_s:.0f} online requests in its {duration_s:.0f} s, fewer than "
                f"the {timing.WANTED_REQUESTS} wanted"
                + (": longer ones do not fit into the time plan." if options.duration_s is None else "."),
            )
        self._results = replace(self._results, duration_s=duration_s, notes=notes)
        self._progress.replan(self._times.runs_s(duration_s) + self._later_s)
        keep_workload(self._raw, self._results)

    async def _make(self, run: str, repeat: int) -> None:
        made, number = len(self._results.runs), len(self._times.runs) * self._options.repeats
        settings = choose_settings(run, self._results)
        plan = self._plan(
            run,
            settings,
            repeat=repeat,
            seed=self._options.seed + repeat - 1,
            window_start_s=self._times.window_start_s(run),
            window_s=timing.window_s(run, self._results.duration_s),
        )
        name = f"run {made + 1} of {number}: {run}, repeat {repeat} of {self._options.repeats}"
        async with self._step(name, self._times.run_s(run, self._results.duration_s)):
            result = _check(await make_run(self._engines[settings.mode], plan))
        keep_run(self._raw, result, made + 1)
        self._results = replace(self._results, runs=(*self._results.runs, result))
        if self._results.objective is None and run == results.ONLINE_ONLY:
            objective = find_objective(result, self._options.tightness)
            self._results = replace(self._results, objective=objective)
            keep_workload(self._raw, self._results)
        self._progress.say(_summarize(result))

    def _plan(
        self,
        run: str,
        settings: RunSettings,
        *,
        seed: int,
        window_start_s: float,
        window_s: float,
        repeat: int = 1,
        lead_s: float | None = None,
        loaded_drain_s: float = timing.LOADED_DRAIN_S,
        drain_limit_s: float = timing.DRAIN_LIMIT_S,
    ) -> RunPlan:
        workload, rate_per_s = self._workload, self._results.online_rate_per_s
        lead_s = workload.lead_s if lead_s is None else lead_s
        online = run not in results.OFFLINE_RUNS
        offline = run != results.ONLINE_ONLY
        requests = workload.draw_online(self._source, self._prompts, rate_per_s, lead_s + window_s, seed)
        return RunPlan(
            run=run,
            repeat=repeat,
            workload=workload.name,
            seed=seed,
            mode=settings.mode,
            window_start_s=window_start_s,
            window_end_s=window_start_s + window_s,
            knobs=settings.knobs,
            objective=settings.objective,
            online=requests if online else (),
            online_start_s=window_start_s - lead_s,
            offline=workload.draw_offline(self._prompts, seed) if offline else None,
            offline_in_flight=workload.offline_in_flight if offline else 0,
            loaded_drain_s=loaded_drain_s if offline else 0.0,
            drain_limit_s=drain_limit_s,
        )

    async def _explore_frontier(self) -> None:
        points: list[CalibrationPoint] = []
        for tokens in list_batch_sizes(self._workload.engine):
            for mode, knobs in (
                ("stock", Knobs(max_num_batched_tokens=tokens)),
                ("conserve", self._fixed_passes(tokens)),
                ("conserve", replace(self._fixed_passes(tokens), safepoints_off=1)),
            ):
                measure = self._measure_short(mode, f"frontier, {mode}", self._workload.fill_s, self._workload.lead_s)
                result = await measure(knobs, timing.FRONTIER_WINDOW_S)
                points.append(calibration.summarize(mode, knobs, [result]))
                self._results = replace(self._results, frontier=tuple(points))
                keep_workload(self._raw, self._results)

    def _fixed_passes(self, tokens: int) -> Knobs:
        """Iterations without online requests have so many tokens, whatever the objectives."""
        return with_objective(Knobs(offline_pass_tokens=tokens, full_passes=1), self._results)

    def _step(self, name: str, expected_s: float) -> AbstractAsyncContextManager[None]:
        return self._progress.step(f"{self._workload.name}: {name}", expected_s)


def _check(result: RunResult) -> RunResult:
    """Refuses a run that lost offline requests, whose rate would be lower for it, or all online ones."""
    for kind, records, most in (
        ("online", result.online, max(0, len(result.online) - 1)),
        ("offline", result.offline, 0),
    ):
        errors = [record.error for record in records if record.error is not None]
        if len(errors) > most:
            raise RunError(
                f"{result.run}: {len(errors)} of {len(records)} {kind} requests failed, the first with: {errors[0]}"
            )
    return result


def _describe_knobs(knobs: Mapping[str, float]) -> str:
    """`max_num_seqs 8`, and so on; what is as the engine was started is left out."""
    return ", ".join(f"{name} {value:g}" for name, value in knobs.items() if value and isfinite(value)) or "as started"


def _summarize(result: RunResult) -> str:
    parts = [result.run]
    ttft, tbt = (percentiles(pool(groups)) for groups in (result.ttft_groups, result.tbt_groups))
    if ttft:
        parts.append(f"TTFT p50 {ttft.p50:,.0f} p99 {ttft.p99:,.0f} ms")
    if tbt:
        parts.append(f"TBT p50 {tbt.p50:,.0f} p99 {tbt.p99:,.0f} ms")
    if result.offline:
        rates = result.offline_rates
        parts.append(f"offline {rates.prompt_per_s:,.0f} prompt and {rates.output_per_s:,.0f} output tokens/s")
    errors = sum(record.error is not None for record in result.measured_online)
    if errors:
        parts.append(f"{errors} of {len(result.measured_online)} online requests failed")
    return " | ".join(parts)
