"""`python -m loadtests.loadtest`: load through the front door of an application that it brings up and stops again.

Online requests alone, then beside batches, sent by locust; then chats over gRPC beside the same over HTTP; then what
the front door costs beside a bare vLLM server.
Exit code 0 after a success, 1 when something failed, 2 for a wrong option, 130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from conserve.launch.interruption import Interruption
from conserve.launch.serve_config import ServeConfig
from conserve.telemetry.logs import configure_program_logs
from loadtests.front.schedule import Arrivals, OnlinePlan, draw_schedule
from loadtests.front.unhurried import add_unhurried
from loadtests.front_cost import read_config
from loadtests.supervision import Stack, hold_folder, make_local_stack, say, supervise
from loadtests.trace_source import Kind, TraceSource

STATE_FOLDER: Final = ".loadtest-state"
FILES: Final = ("report.html", "summary.json", "front_cost.json", "latency.png", "timeline.png")


@dataclass(frozen=True)
class LoadTestOptions:
    """The command line; see `main`."""

    online: OnlinePlan
    source: str
    beside_s: float
    out: Path
    base_url: str | None
    grpc_address: str | None
    turns: int
    grpc_turns: int


def conduct(
    options: LoadTestOptions, config: ServeConfig, console: Console, stack: Stack | None, interruption: Interruption
) -> int:
    """Runs all of it against the stack, or against `base_url` and `grpc_address` where there is none.

    Returns the exit code.
    """
    # Imported under the signal handlers: all of them together take seconds to load.
    from loadtests.front.bare_server import BareServerError
    from loadtests.front.calls import CallError
    from loadtests.front.conductor import LoadPlan, LoadTest, LoadTestError
    from loadtests.front.cost import find_misses
    from loadtests.front.direct import DirectError, find_address
    from loadtests.front.entrances import measure_entrances, open_entrances
    from loadtests.front.figures import find_problems, make_report
    from loadtests.front.locust_process import LocustError
    from loadtests.front.page import write_page
    from loadtests.front.plots import write_plots
    from loadtests.front.turns import TurnsError
    from loadtests.front_cost import measure_front_cost, render
    from loadtests.report import write_json, write_report
    from loadtests.supervision import BringUpError, bring_up

    def announce(line: str) -> None:
        say(console, line)

    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    cost = None
    entrances = None
    try:
        url, grpc_address = options.base_url or "", options.grpc_address
        if stack is not None:
            announce("Bringing the application up")
            running = bring_up(stack, announce)
            url, grpc_address = running.base_url, running.grpc_address
        test = LoadTest(LoadPlan(options.online, options.beside_s, out), url, announce)
        phases = interruption.run(test.run())
        problems = find_problems(phases)
        if options.grpc_turns and grpc_address is not None:
            announce(f"{options.grpc_turns} chats each over HTTP and over gRPC, by turns")
            rounds, at_once = max(2, options.grpc_turns // 8), config.settings.engine.max_num_seqs
            with open_entrances(url, grpc_address, test.model) as both:
                entrances = measure_entrances(both, options.grpc_turns, rounds, at_once)
        elif options.grpc_turns:
            announce("left out, chats over gRPC: there is no address for them")
        if options.turns:
            rounds = max(2, options.turns // 8)
            log_path = out / "raw" / "bare.log"
            cost = measure_front_cost(
                url,
                config,
                log_path,
                ray_address=find_address(config.settings),
                turns=options.turns,
                rounds=rounds,
                announce=announce,
            )
            problems += find_misses(cost)
            write_json(out / "front_cost.json", cost.model_dump())
    except (BringUpError, BareServerError, CallError, DirectError, LoadTestError, LocustError, TurnsError) as error:
        say(console, f"The load test failed: {error}", style="bold red")
        return 1
    report = make_report(phases, test.model, options.source, options.online.seed, entrances)
    write_report(out / "summary.json", report)
    write_page(out / "report.html", report, write_plots(phases, out), cost, problems)
    if cost is not None:
        console.print(*render(cost), sep="\n")
    for name in FILES:
        if (out / name).exists():
            announce(f"{out / name}")
    for problem in problems:
        say(console, f"Failed: {problem}", style="bold red")
    return 1 if problems else 0


def main(
    traces: Annotated[
        Path | None, typer.Option(envvar="CONSERVE_TRACES", help="A trace or a folder of traces; else generated ones.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="Which trace, or whose statistics.")] = "conv",
    arrivals: Annotated[Arrivals, typer.Option(help="Gaps between chats.")] = "trace",
    cv: Annotated[float, typer.Option(min=0.01, help="Variation of the gaps, of --arrivals gamma.")] = 3.0,
    rate: Annotated[float, typer.Option(min=0.01, help="Chats a second, on average.")] = 0.7,
    length_scale: Annotated[float, typer.Option(min=0.001, help="Lengths of the trace are multiplied by it.")] = 0.125,
    alone_s: Annotated[float, typer.Option(min=1, help="Seconds of online requests alone.")] = 60.0,
    beside_s: Annotated[float, typer.Option(min=1, help="Seconds of online requests beside batches.")] = 75.0,
    turns: Annotated[int, typer.Option(min=0, help="Chats of the bare server to compare with; 0 for none.")] = 32,
    grpc_turns: Annotated[
        int, typer.Option(min=0, help="Chats over gRPC to compare with as many over HTTP; 0 for none.")
    ] = 32,
    seed: Annotated[int, typer.Option(help="Of arrivals and lengths.")] = 7,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/loadtest"),
    base_url: Annotated[
        str | None, typer.Option(help="An application of this machine that runs already, as --config describes it.")
    ] = None,
    grpc: Annotated[
        str | None, typer.Option(help="HOST:PORT of its gRPC services, with --base-url; without it no chats over gRPC.")
    ] = None,
    config: Annotated[
        Path, typer.Option(envvar="CONSERVE_CONFIG", help="What to bring up, where --base-url is not given.")
    ] = Path("serve_config.yaml"),
) -> None:
    """Load through the front door: online requests alone, beside batches, over gRPC, and what the front door costs."""
    configure_program_logs()
    console = Console(highlight=False)
    if grpc is not None and base_url is None:
        raise typer.BadParameter(
            "only with --base-url; the application that is brought up has its own", param_hint="--grpc"
        )
    try:
        plan = OnlinePlan(
            duration_s=alone_s,
            rate_per_s=rate,
            arrivals=arrivals,
            kind=kind,
            traces=traces,
            cv=cv,
            length_scale=length_scale,
            max_prompt_tokens=2048,
            max_output_tokens=512,
            seed=seed,
        )
        problems: list[str] = []
        draw_schedule(plan, problems)
        source = TraceSource(traces).name(kind)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    for problem in problems:
        say(console, f"Left out: {problem}")
    environ = dict(os.environ) if base_url else add_unhurried(os.environ)
    make_stack = (
        None if base_url is not None else functools.partial(make_local_stack, config, out / STATE_FOLDER, environ)
    )
    options = LoadTestOptions(plan, source, beside_s, out, base_url, grpc, turns, grpc_turns)
    read = read_config(config, None if base_url else out / STATE_FOLDER, environ)
    with hold_folder(out):
        raise typer.Exit(supervise(make_stack, console, functools.partial(conduct, options, read, console)))


if __name__ == "__main__":
    typer.run(main)
