"""`python -m loadtests.cluster_harvest`: how much of a simulated cluster's stranded capacity the controller harvests.

Replicas in two pools with tides of online load in anti-phase, batches for all of them; see `conserve.simulator.tides`,
which says what stranded capacity is. Then a minute of the same, with the controller and without it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from conserve.simulator.batch_supply import Outage
from conserve.simulator.metrics import Metrics
from conserve.simulator.roofline import find_profile
from conserve.simulator.scenarios import SCENARIOS
from conserve.simulator.tides import Tides

PROFILE: Final = "h100/llama-3.1-8b"
MUST_SHARE: Final = 0.85
OUTAGE_S: Final = 60.0
MUST_OUTAGE_SHARE: Final = 0.8
SLOWER: Final = 1.02
"""A P99 of online requests that is longer by no more than this is unchanged."""


def make_tides(replicas: int, requests_per_s: float, minutes: float) -> Tides:
    """H100 with an 8B model, and a tide in which the high water is ten times the low one."""
    seconds = 60.0 * minutes
    scenario = SCENARIOS["tide"]
    return Tides(find_profile(PROFILE).costs, scenario, requests_per_s, replicas, period_s=seconds, duration_s=seconds)


def main(
    replicas: Annotated[int, typer.Option(min=2)] = 64,
    requests_per_s: Annotated[float, typer.Option(help="Online requests of a replica, on average.")] = 4.0,
    minutes: Annotated[float, typer.Option(help="From one low tide to the next, which is what is measured.")] = 10.0,
    seed: int = 1,
) -> None:
    """Simulates a cluster under tides and prints the harvested share of its stranded capacity."""
    console = Console(width=140)
    tides = make_tides(replicas, requests_per_s, minutes)
    arrivals = tides.draw_arrivals(seed)
    console.print(
        f"{replicas} x {PROFILE}, {len(arrivals):,} online requests in {tides.end_s:,.0f} s, "
        f"{tides.batches} batches of {tides.tenants} tenants"
    )
    table = Table()
    for name in ("run", "offline tok/s", "harvested share", "TTFT p99 ms", "TBT p99 ms", "TTFT in time", "took s"):
        table.add_column(name, justify="left" if name == "run" else "right")
    measured: dict[str, Metrics] = {}

    def add(name: str, metrics: Metrics, began_s: float) -> None:
        measured[name] = metrics
        possible = measured["all-knowing"]
        share = (
            f"{metrics.offline_tokens / possible.offline_tokens:.1%}" if metrics.window_s == possible.window_s else "-"
        )
        table.add_row(
            name,
            f"{metrics.offline_tokens_per_s:,.0f}",
            share,
            f"{metrics.ttft.percentile(0.99):,.0f}",
            f"{metrics.tbt.percentile(0.99):,.1f}",
            f"{metrics.ttft_in_time / max(1, metrics.online_requests):.2%}",
            f"{time.perf_counter() - began_s:,.0f}",
        )
        console.print(f"{name}: done")

    began_s = time.perf_counter()
    add("all-knowing", tides.run_all_knowing(arrivals, seed), began_s)
    began_s = time.perf_counter()
    add("online alone", tides.run_alone(arrivals, seed), began_s)
    began_s = time.perf_counter()
    add("controller", tides.run_controlled(arrivals, seed), began_s)
    # Only the minute in which it is away is measured, with and without it.
    away = Outage(tides.warmup_s + tides.duration_s / 2, tides.warmup_s + tides.duration_s / 2 + OUTAGE_S)
    minute = replace(tides, warmup_s=away.begins_s, duration_s=OUTAGE_S)
    began_s = time.perf_counter()
    add("a minute of that", minute.run_controlled(arrivals, seed), began_s)
    began_s = time.perf_counter()
    add("the controller away in it", minute.run_controlled(arrivals, seed, away), began_s)
    console.print(table)
    share = measured["controller"].offline_tokens / measured["all-knowing"].offline_tokens
    there, gone = measured["a minute of that"], measured["the controller away in it"]
    kept = gone.offline_tokens / there.offline_tokens
    slower = gone.ttft.percentile(0.99) / there.ttft.percentile(0.99)
    console.print(f"harvested share of stranded capacity: {share:.1%} (must be {MUST_SHARE:.0%})")
    console.print(f"offline while the controller is away: {kept:.1%} (must be {MUST_OUTAGE_SHARE:.0%})")
    console.print(f"online P99 TTFT while it is away, over that with it: {slower:.3f}")
    if share < MUST_SHARE or kept < MUST_OUTAGE_SHARE or slower > SLOWER:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
