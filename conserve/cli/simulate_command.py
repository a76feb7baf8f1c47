"""`conserve simulate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from conserve.cli.console import JsonOption, fail, out, say_progress, show_json, show_table
from conserve.cli.simulation_options import MeasuredOption, ProfileOption, read_profile, read_requests, split_names
from conserve.simulator.cluster import Incident
from conserve.simulator.comparison import Comparison, ComparisonPlan, compare
from conserve.simulator.policies import POLICIES
from conserve.simulator.scenarios import SCENARIOS

LARGEST_EXACT: int = 4
"""With more replicas decisions are made for a second at a time."""
_DEFAULT = "online-only,offline-only,stock-priority,chunked-priority,gateway-limit,budget-only,conserve,ceiling"


def simulate(
    workload: Annotated[str, typer.Argument(help=f"One of {', '.join(SCENARIOS)}.")] = "chat",
    profile: ProfileOption = "h100/llama-3.1-8b",
    measured: MeasuredOption = None,
    policies: Annotated[
        str, typer.Option("--policies", help="Names with commas between them, or `all`.", metavar="NAMES")
    ] = _DEFAULT,
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=10_000)] = 1,
    duration_s: Annotated[
        float, typer.Option("--duration", min=1.0, max=1e6, help="Seconds that are measured.", metavar="S")
    ] = 300.0,
    rate_per_s: Annotated[
        float | None,
        typer.Option("--rate", min=1e-6, help="Online requests a second, of all replicas together.", metavar="R"),
    ] = None,
    ttft_slo_ms: Annotated[
        float | None, typer.Option("--ttft-slo-ms", min=1e-3, help="Instead of 1.25 times the P99 of online alone.")
    ] = None,
    tbt_slo_ms: Annotated[float | None, typer.Option("--tbt-slo-ms", min=1e-3, help="Likewise.")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Azure CSV, BurstGPT CSV or Mooncake JSONL with online requests.")
    ] = None,
    fail_replica: Annotated[
        list[str] | None,
        typer.Option("--incident", help="TIME:REPLICA:fail, drain or start; may be given again.", metavar="T:N:WHAT"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    exact: Annotated[
        bool | None,
        typer.Option("--exact/--coarse", help="Every iteration decided, or a second at a time where possible."),
    ] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Also write the figures to this JSON file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulates a workload under several scheduling policies, in virtual time; the same seed gives the same figures."""
    if workload not in SCENARIOS:
        raise fail(f"WORKLOAD: {workload!r} is none; there are: {', '.join(SCENARIOS)}", 2)
    plan = ComparisonPlan(
        scenario=SCENARIOS[workload],
        costs=read_profile(profile, measured).costs,
        replicas=replicas,
        duration_s=duration_s,
        seed=seed,
        ttft_slo_ms=ttft_slo_ms,
        tbt_slo_ms=tbt_slo_ms,
        online_rate_per_s=rate_per_s,
        trace=read_requests(trace) if trace is not None else (),
        incidents=[_parse_incident(each, replicas) for each in fail_replica or ()],
        coarse=replicas > LARGEST_EXACT if exact is None else not exact,
    )
    names = split_names("--policies", policies, POLICIES)
    found = compare(plan, names, lambda name: say_progress(f"simulating {name}"))
    document = {"workload": workload, "profile": profile, "replicas": replicas, "seed": seed, **found.to_dict()}
    if as_json:
        show_json(document)
    else:
        show_table(_make_table(found, f"{workload}, {replicas} x {profile}"))
        out.print(
            f"Online: {found.online_rate_per_s:.2f} requests/s. Objectives: TTFT {found.ttft_slo_ms:.0f} ms, "
            f"TBT {found.tbt_slo_ms:.1f} ms."
        )
    iterations = sum(metrics.iterations for metrics in found.metrics.values())
    took_s = max(1e-9, sum(found.took_s.values()))
    say_progress(f"{iterations:,} iterations in {took_s:.1f} s of processor time: {iterations / took_s:,.0f} a second")
    if out_file is not None:
        try:
            out_file.parent.mkdir(parents=True, exist_ok=True)
            out_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise fail(f"--out: {out_file} cannot be written: {error.strerror}") from None


def _make_table(found: Comparison, title: str) -> Table:
    table = Table(title=f"{title}: p50 / p99", title_justify="left")
    table.add_column("policy", no_wrap=True)
    for column in ("TTFT ms", "TBT ms", "in time", "offline tok/s", "preempted", "stops"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, metrics in found.metrics.items():
        latencies = [
            f"{histogram.percentile(0.5):,.0f} / {histogram.percentile(0.99):,.0f}" if histogram.count else "-"
            for histogram in (metrics.ttft, metrics.tbt)
        ]
        in_time = f"{metrics.ttft_in_time / metrics.ttft.count:.1%}" if metrics.ttft.count else "-"
        table.add_row(
            name,
            *latencies,
            in_time,
            f"{metrics.offline_tokens_per_s:,.0f}",
            f"{metrics.offline_preemptions:,}",
            f"{metrics.stops:,}",
        )
    return table


def _parse_incident(text: str, replicas: int) -> Incident:
    at_s, _, rest = text.partition(":")
    number, _, kind = rest.partition(":")
    try:
        incident = (float(at_s), int(number))
    except ValueError:
        raise fail(f"--incident: {text!r} is not TIME:REPLICA:fail, drain or start", 2) from None
    if not 0 <= incident[1] < replicas:
        raise fail(f"--incident: {text!r}: REPLICA must be from 0 to {replicas - 1}", 2)
    if kind == "fail":
        return Incident(*incident, "fail")
    if kind == "drain":
        return Incident(*incident, "drain")
    if kind == "start":
        return Incident(*incident, "start")
    raise fail(f"--incident: {text!r}: {kind!r} is none of fail, drain, start", 2)
