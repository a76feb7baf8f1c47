"""`python -m loadtests.coserve`: the co-serving benchmark, stock vLLM and ConServe on one machine in one go.

Exit code 0 when all runs were made, 1 when something failed, 2 for a wrong option, 130 after Ctrl-C or SIGTERM. What
was measured until then is kept; `--report-only` makes the report of it.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from conserve.config import EngineSettings
from conserve.launch.interruption import Interruption
from conserve.models import DEFAULT_MODEL, ModelError, resolve_model
from conserve.telemetry.logs import configure_program_logs
from loadtests.coserving.bench import StartEngine, WorkloadBench
from loadtests.coserving.catalog import NAMES, WORKLOADS
from loadtests.coserving.driver import CoServingEngine, RunError
from loadtests.coserving.kept import KeptResultError, clear_kept, is_kept, read_kept
from loadtests.coserving.model_shapes import RANDOM_WEIGHTS, SHAPES, write_shape
from loadtests.coserving.plan import ABLATIONS, BenchOptions, estimate_s
from loadtests.coserving.progress import BenchProgress
from loadtests.coserving.prompts import PromptError, PromptMaker, read_vocabulary
from loadtests.coserving.workloads import Size, Workload
from loadtests.display import format_clock
from loadtests.report import describe_machine
from loadtests.supervision import INTERRUPTED
from loadtests.trace_source import TraceSource
from loadtests.traces import TraceError

QUICK = "chat,pressure"
QUICK_PASS_S = 1_130.0
"""Where no more is asked for, the two of them take no more than 40 minutes, scheduler cost and reports included."""
_NARROWEST = 120
_DEFAULT_MODELS: dict[Size, str] = {"cpu": DEFAULT_MODEL, "gpu": "llama-3.1-8b-random"}
_RAW = "raw"


@dataclass(frozen=True)
class Bench:
    """What to benchmark; see `main`.

    Attributes:
        workloads: One after the other.
        model: Folder of the model, for its vocabulary.
        start_engine: Starts an engine of that model.
    """

    options: BenchOptions
    workloads: Sequence[Workload]
    model: Path
    start_engine: StartEngine
    source: TraceSource
    out: Path


def conduct(bench: Bench, console: Console) -> int:
    """Runs the workloads, reports each as it is done, and returns the exit code."""
    from loadtests.coserving.summary import write_workload_report

    with Interruption() as interruption:
        try:
            for workload in bench.workloads:
                workload.check_source(bench.source, bench.options.seed)
            for workload in bench.workloads:
                # It would pass for this benchmark's.
                clear_kept(bench.out / _RAW / workload.name)
            prompts = PromptMaker(read_vocabulary(bench.model))
            planned_s = [estimate_s(workload, bench.options) for workload in bench.workloads]
            _print_plan(console, bench, planned_s)
            for index, workload in enumerate(bench.workloads):
                later_s = sum(planned_s[index + 1 :])
                with BenchProgress(console, planned_s[index] + later_s) as progress:
                    run = WorkloadBench(
                        workload,
                        bench.options,
                        bench.start_engine,
                        bench.source,
                        prompts,
                        progress,
                        bench.out / _RAW / workload.name,
                        later_s,
                    )
                    results = interruption.run(run.run())
                write_workload_report(results, bench.out, console)
        except KeyboardInterrupt:
            _say(console, f"Interrupted. What was measured is in {bench.out / _RAW}; --report-only reports it.")
            return INTERRUPTED
        except (RunError, TraceError, PromptError, OSError) as error:
            _say(console, f"The benchmark failed: {error}", style="bold red")
            return 1
    return 0


def report_kept(out: Path, names: Sequence[str], console: Console) -> int:
    """Makes the reports of what a benchmark kept, and returns the exit code."""
    from loadtests.coserving.summary import write_workload_report

    kept = [out / _RAW / name for name in names if is_kept(out / _RAW / name)]
    if not kept:
        _say(console, f"{out / _RAW}: nothing is kept of {', '.join(names)}", style="bold red")
        return 1
    code = 0
    for folder in kept:
        try:
            write_workload_report(read_kept(folder), out, console)
        except KeptResultError as error:
            _say(console, f"{error}", style="bold red")
            code = 1
    return code


def _print_plan(console: Console, bench: Bench, planned_s: Sequence[float]) -> None:
    plan = ", ".join(
        f"{workload.name} {format_clock(seconds)}" for workload, seconds in zip(bench.workloads, planned_s, strict=True)
    )
    _say(console, f"{bench.options.model} on {bench.options.machine}")
    _say(console, f"At most {format_clock(sum(planned_s))} (minutes:seconds): {plan}", style="bold")


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def read_gpu_name() -> str | None:
    """The first GPU's name, as `nvidia-smi` gives it; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.strip().partition("\n")[0] or None


def _prepare_start(model: str, random_weights: bool) -> StartEngine:
    async def start(settings: EngineSettings) -> CoServingEngine:
        # vLLM takes 20 s to import, and writes its log over the display.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from conserve.engine.direct import DirectEngine, DirectEngineConfig
        from conserve.engine.options import Objective

        extra = {"use_tqdm_on_load": False} | (RANDOM_WEIGHTS if random_weights else {}) | settings.extra_args
        settings = settings.model_copy(update={"extra_args": extra})
        no_objective = Objective(ttft_slo_ms=float("inf"), tbt_slo_ms=float("inf"))
        try:
            return await DirectEngine.start(DirectEngineConfig(model, settings, no_objective, log_iterations=True))
        # Processes are started here; what they raise is theirs, what went wrong is for the user.
        except Exception as error:
            raise RunError(f"the {settings.mode} engine did not start: {type(error).__name__}: {error}") from error

    return start


def _read_names(text: str, known: Sequence[str], option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if names == ("all",):
        return tuple(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint=option)
    return tuple(dict.fromkeys(names))


def _refuse_infinite(option: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("must be a finite number", param_hint=option)


def _resolve(model: str, out: Path) -> tuple[Path, bool]:
    """The model's folder, and whether its weights are random."""
    if model in SHAPES:
        return write_shape(model, out / "models"), True
    try:
        path = Path(resolve_model(model))
    except ModelError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from None
    if not path.is_dir():
        raise typer.BadParameter(f"must be a folder, {', '.join((DEFAULT_MODEL, *SHAPES))}", param_hint="--model")
    return path, False


@contextlib.contextmanager
def _hold_folder(out: Path) -> Iterator[None]:
    """Keeps a second benchmark out of the folder; two on one machine would measure each other anyway."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise typer.BadParameter(f"another benchmark is running in {out}", param_hint="--out") from None


def main(
    workload: Annotated[
        str | None, typer.Option(help=f"`all`, or some of {', '.join(NAMES)}, with commas; by default {QUICK}.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of all runs, interleaved.")] = 1,
    traces: Annotated[
        Path | None,
        typer.Option(envvar="CONSERVE_TRACES", help="A trace, or a folder of traces; without it they are generated."),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "gpu"], typer.Option(help="Size of the workloads; `auto` looks for a GPU.")
    ] = "auto",
    model: Annotated[
        str | None, typer.Option(help=f"A model folder, {DEFAULT_MODEL} (on a CPU), or {', '.join(SHAPES)} (on a GPU).")
    ] = None,
    tightness: Annotated[
        float, typer.Option(min=0.01, help="Objectives are the P99 of online-only times this.")
    ] = 1.25,
    duration_s: Annotated[
        float | None, typer.Option(min=1, help="Seconds measured in each run; by default what the time plan allows.")
    ] = None,
    ablate: Annotated[str, typer.Option(help=f"`all`, or some of {', '.join(ABLATIONS)}, with commas.")] = "",
    relaxed: Annotated[
        bool, typer.Option("--relaxed", help="Also ours with nine tenths of the P99 of stock-tuned as objectives.")
    ] = False,
    frontier: Annotated[bool, typer.Option("--frontier", help="Also try sizes of the offline pass.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals, lengths and prompts.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/bench"),
    report_only: Annotated[bool, typer.Option("--report-only", help="Report what was kept; run nothing.")] = False,
) -> None:
    """Online latency and offline throughput on one engine: ConServe beside stock vLLM, tuned and untuned."""
    configure_program_logs()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, _NARROWEST))
    _refuse_infinite("--tightness", tightness)
    _refuse_infinite("--duration-s", duration_s)
    names = _read_names(workload if workload is not None else "all" if report_only else QUICK, NAMES, "--workload")
    if not names:
        raise typer.BadParameter(f"names none of {', '.join(NAMES)}", param_hint="--workload")
    ablations = _read_names(ablate, tuple(ABLATIONS), "--ablate")
    with _hold_folder(out):
        if report_only:
            raise typer.Exit(report_kept(out, names, console))
        gpu = read_gpu_name()
        size: Size = device if device != "auto" else "gpu" if gpu is not None else "cpu"
        chosen = model or _DEFAULT_MODELS[size]
        folder, random_weights = _resolve(chosen, out)
        options = BenchOptions(
            machine=describe_machine() + (f", {gpu}" if size == "gpu" and gpu else ""),
            model=chosen,
            repeats=repeats,
            tightness=tightness,
            duration_s=duration_s,
            pass_limit_s=QUICK_PASS_S if workload is None else None,
            ablations=ablations,
            relaxed=relaxed,
            frontier=frontier,
            seed=seed,
        )
        bench = Bench(
            options=options,
            workloads=[WORKLOADS[name, size] for name in names],
            model=folder,
            start_engine=_prepare_start(str(folder), random_weights),
            source=TraceSource(traces),
            out=out,
        )
        raise typer.Exit(conduct(bench, console))


if __name__ == "__main__":
    typer.run(main)
