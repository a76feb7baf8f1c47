"""`python -m loadtests.front_cost`: what the front door costs beside a bare vLLM server on the same cores, by turns.

Exit code 0 when it costs no more than it may, 1 when it does or something failed, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from conserve.launch.interruption import Interruption
from conserve.launch.serve_config import ServeConfig, read_serve_config
from conserve.telemetry.logs import configure_program_logs
from loadtests.front.bare_server import BareServerError, run_bare_server
from loadtests.front.calls import CallError, Calls
from loadtests.front.cost import ALIKE, APPLICATION, BARE, FrontCost, describe_bursts, find_misses, split_stages
from loadtests.front.direct import DirectError, ask_replica, find_address
from loadtests.front.stages import measure_stages
from loadtests.front.turns import (
    Server,
    TurnsError,
    measure_throughput,
    measure_ttft,
    median_difference,
    ratio_of_rounds,
)
from loadtests.front.unhurried import add_unhurried, find_unhurried
from loadtests.latency import percentiles
from loadtests.report import Percentiles, write_json
from loadtests.supervision import BringUpError, Stack, bring_up, hold_folder, make_local_stack, say, supervise

STATE_FOLDER: Final = ".front-state"


def measure_front_cost(
    base_url: str,
    config: ServeConfig,
    log_path: Path,
    *,
    ray_address: str | None,
    turns: int,
    rounds: int,
    announce: Callable[[str], None],
) -> FrontCost:
    """Starts a bare server beside the application, measures both by turns, and ends the bare one.

    Raises:
        BareServerError, TurnsError, DirectError, CallError, ModelError: it cannot be measured.
    """
    settings, application = config.settings, config.application
    on_cpu = settings.engine.device != "gpu" and not _has_gpu()
    announce("starting a bare vLLM server with the same settings")
    with run_bare_server(settings, log_path, on_cpu=on_cpu) as bare_url:
        servers = [
            Server(name, Calls(url), _find_model(url)) for name, url in ((APPLICATION, base_url), (BARE, bare_url))
        ]
        announce(f"the first token of {turns} chats each, by turns")
        with contextlib.ExitStack() as stack:
            direct = None
            if ray_address is not None:
                log = log_path.with_name("direct.log")
                try:
                    direct = stack.enter_context(ask_replica(ray_address, application, log))
                except DirectError as error:
                    announce(f"left out, chats past proxy and front: {error}")
            records, direct_ms = measure_ttft(servers, turns, direct)
        announce(f"throughput of {rounds} rounds each, by turns")
        at_once = settings.engine.max_num_seqs
        unhurried = find_unhurried(settings)
        if unhurried is not None:
            servers.append(Server(ALIKE, servers[0].calls, servers[0].model, unhurried))
        bursts = measure_throughput(servers, rounds, at_once)
        announce("requests that end at each stage")
        stages_ms = measure_stages(servers[0].calls, servers[1].calls, turns)
    rates = {name: [one.tokens_per_s for one in found] for name, found in bursts.items()}
    with_objective = ratio_of_rounds(rates[APPLICATION], rates[BARE])
    ttft_ms = {name: [one.ttft_ms or 0.0 for one in found] for name, found in records.items()}
    tbt_ms = {name: [gap for one in found for gap in one.tbt_ms] for name, found in records.items()}
    return FrontCost(
        turns=len(ttft_ms[APPLICATION]),
        ttft_ms={name: _percentiles(values) for name, values in ttft_ms.items()},
        ttft_p50_difference_ms=median_difference(ttft_ms[APPLICATION], ttft_ms[BARE]),
        tbt_p50_ms={name: _percentiles(values).p50 for name, values in tbt_ms.items()},
        rounds=rounds,
        requests_at_once=at_once,
        output_tokens_per_s={name: sum(values) / len(values) for name, values in rates.items()},
        burst_tbt_p99_ms={
            name: _percentiles([gap for one in found for gap in one.tbt_ms]).p99 for name, found in bursts.items()
        },
        throughput_ratio=with_objective if unhurried is None else ratio_of_rounds(rates[ALIKE], rates[BARE]),
        objective_ratio=None if unhurried is None else with_objective,
        stages_ms=stages_ms,
        direct_ttft_p50_ms=_percentiles(direct_ms).p50 if direct_ms else None,
    )


def render(cost: FrontCost) -> list[Table]:
    """The tables that are printed."""
    table = Table(title="The front door beside a bare vLLM server, by turns", title_justify="left")
    for column in ("", APPLICATION, BARE, "difference"):
        table.add_column(column, justify="right" if column else "left")
    ours, bare = cost.ttft_ms[APPLICATION], cost.ttft_ms[BARE]
    difference = cost.ttft_p50_difference_ms
    shown = f"{difference.value:+.1f} ms ({difference.low:+.1f} to {difference.high:+.1f})"
    table.add_row("TTFT p50", f"{ours.p50:.1f} ms", f"{bare.p50:.1f} ms", shown)
    table.add_row("TTFT p90", f"{ours.p90:.1f} ms", f"{bare.p90:.1f} ms", f"{ours.p90 - bare.p90:+.1f} ms")
    gaps = cost.tbt_p50_ms[APPLICATION], cost.tbt_p50_ms[BARE]
    table.add_row("TBT p50", f"{gaps[0]:.1f} ms", f"{gaps[1]:.1f} ms", f"{gaps[0] - gaps[1]:+.1f} ms")
    for row in describe_bursts(cost):
        table.add_row(*row)
    stages = Table(title="Where the difference of the first tokens goes", title_justify="left")
    stages.add_column("stage")
    stages.add_column("adds", justify="right")
    for name, added_ms in split_stages(cost):
        stages.add_row(name, f"{added_ms:+.1f} ms")
    return [table, stages]


def _percentiles(values: list[float]) -> Percentiles:
    found = percentiles(values)
    if found is None:
        raise TurnsError("nothing was measured")
    return found


def _find_model(base_url: str) -> str:
    models = Calls(base_url).get_json("/v1/models").get("data") or []
    if not models:
        raise CallError(f"{base_url}/v1/models names no model")
    return str(models[0]["id"])


def _has_gpu() -> bool:
    return bool(list(Path("/dev").glob("nvidia[0-9]*")))


def main(
    turns: Annotated[int, typer.Option(min=5, help="Chats of each server, one at a time.")] = 40,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of throughput of each server.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for front_cost.json and the log.")] = Path("out/loadtest"),
    base_url: Annotated[
        str | None,
        typer.Option(help="An application of this machine that runs already, as --config describes it."),
    ] = None,
    config: Annotated[
        Path, typer.Option(envvar="CONSERVE_CONFIG", help="What to bring up, and the settings of the bare server.")
    ] = Path("serve_config.yaml"),
) -> None:
    """TTFT and throughput through the front door, beside a bare vLLM server, and where the time goes."""
    configure_program_logs()
    console = Console(highlight=False)
    environ = dict(os.environ) if base_url else add_unhurried(os.environ)

    def work(stack: Stack | None, interruption: Interruption) -> int:
        try:
            read = read_config(config, None if base_url else out / STATE_FOLDER, environ)
            url = base_url or bring_up(require(stack), lambda line: say(console, line)).base_url
            cost = measure_front_cost(
                url,
                read,
                out / "bare.log",
                ray_address=find_address(read.settings),
                turns=turns,
                rounds=rounds,
                announce=lambda line: say(console, line),
            )
        except (BringUpError, BareServerError, TurnsError, DirectError, CallError) as error:
            say(console, f"Not measured: {error}", style="bold red")
            return 1
        write_json(out / "front_cost.json", cost.model_dump())
        console.print(*render(cost), sep="\n")
        misses = find_misses(cost)
        for miss in misses:
            say(console, f"Missed: {miss}", style="bold red")
        return 1 if misses else 0

    folder = out / STATE_FOLDER
    make_stack = None if base_url is not None else functools.partial(make_local_stack, config, folder, environ)
    with hold_folder(out):
        raise typer.Exit(supervise(make_stack, console, work))


def read_config(path: Path, state_dir: Path | None, environ: Mapping[str, str]) -> ServeConfig:
    """The configuration of a stack whose state is in that folder; by default the configuration's own.

    Raises:
        SettingsError: it is wrong.
    """
    state = {} if state_dir is None else {"CONSERVE_STATE_DIR": str(state_dir.absolute())}
    return read_serve_config(path, {**environ, **state})


def require(stack: Stack | None) -> Stack:
    """The stack that is to be brought up."""
    if stack is None:
        raise BringUpError("there is nothing to bring up")
    return stack


if __name__ == "__main__":
    typer.run(main)
