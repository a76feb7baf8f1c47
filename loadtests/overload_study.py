"""`python -m loadtests.overload_study`: online load beyond capacity in the simulator, with and without refusals.

Goodput are the requests a second that were answered in time: the first token, and the mean time between further ones.
Offline work is there all the time. The load is a multiple of what a replica serves with all its slots taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from conserve.config import Settings
from conserve.policy.overload import OverloadLimits
from conserve.simulator.cluster import Cluster
from conserve.simulator.comparison import ComparisonPlan, find_rate
from conserve.simulator.engine_costs import EngineCosts
from conserve.simulator.metrics import Metrics
from conserve.simulator.policies import POLICIES
from conserve.simulator.roofline import find_profile
from conserve.simulator.scenarios import SCENARIOS, Scenario
from conserve.simulator.supply import EndlessSupply
from loadtests.report import write_json

LOADS: Final = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
WARM_UP_S: Final = 20.0
DRAIN_S: Final = 30.0
QUIET_LOAD: Final = 0.5
"""Load after the overload, when offline work comes back."""
RETURN_S: Final = 8
LEAST_SHARE: Final = 0.9
"""Goodput at the highest load is to be this part of the best."""


class Outcome(BaseModel):
    """What came of a load, requests and tokens a second; refusals by reason."""

    load: float
    offered_per_s: float
    goodput_per_s: float
    refused_per_s: dict[str, float]
    ttft_p99_ms: float
    ttft_attainment: float
    tbt_p99_ms: float
    offline_tokens_per_s: float


@dataclass(frozen=True)
class Study:
    """What is simulated: one replica.

    Attributes:
        scenario: Requests.
        costs: Of the engine.
        ttft_slo_ms, tbt_slo_ms: Objectives.
        duration_s: Of the measured window.
        seed: Decides everything random.
    """

    scenario: Scenario
    costs: EngineCosts
    ttft_slo_ms: float
    tbt_slo_ms: float
    duration_s: float
    seed: int

    def find_capacity(self) -> float:
        """Online requests a second that the replica serves, alone and with all slots taken."""
        whole = replace(self.scenario, online_share=1.0)
        return find_rate(ComparisonPlan(whole, self.costs, seed=self.seed))

    def run(self, load: float, capacity_per_s: float, *, refuses: bool) -> Outcome:
        """One load."""
        until_s = WARM_UP_S + self.duration_s
        arrivals = self.scenario.draw_online(load * capacity_per_s, until_s, self.seed)
        metrics = Metrics(WARM_UP_S, until_s, self.ttft_slo_ms, self.tbt_slo_ms)
        self._make_cluster(metrics, refuses=refuses).run(arrivals, until_s + DRAIN_S)
        return Outcome(
            load=load,
            offered_per_s=load * capacity_per_s,
            goodput_per_s=metrics.online_good / metrics.window_s,
            refused_per_s={
                str(reason): count / metrics.window_s for reason, count in metrics.online_refused.items() if count
            },
            ttft_p99_ms=metrics.ttft.percentile(0.99),
            ttft_attainment=metrics.ttft_in_time / metrics.ttft.count if metrics.ttft.count else 1.0,
            tbt_p99_ms=metrics.tbt.percentile(0.99),
            offline_tokens_per_s=metrics.offline_tokens_per_s,
        )

    def follow_return(self, load: float, capacity_per_s: float) -> list[float]:
        """Offline tokens a second: in the last second of an overload, then in each of those after it."""
        ends_s = WARM_UP_S + self.duration_s
        loud = self.scenario.draw_online(load * capacity_per_s, ends_s, self.seed)
        quiet = self.scenario.draw_online(QUIET_LOAD * capacity_per_s, RETURN_S + 1.0, self.seed + 1)
        arrivals = [*loud, *(replace(one, arrival_s=ends_s + one.arrival_s) for one in quiet)]
        metrics = Metrics(0.0, math.inf, self.ttft_slo_ms, self.tbt_slo_ms)
        cluster = self._make_cluster(metrics, refuses=True)
        now_s, rates = 0.0, []
        for until_s in (ends_s + second for second in range(-1, RETURN_S + 1)):
            before = metrics.offline_tokens
            cluster.run([one for one in arrivals if now_s <= one.arrival_s < until_s], until_s)
            now_s = until_s
            rates.append(float(metrics.offline_tokens - before))
        return rates[1:]

    def _make_cluster(self, metrics: Metrics, *, refuses: bool) -> Cluster:
        settings = Settings().overload
        limits = (
            OverloadLimits(settings.ttft_share, settings.max_waiting_requests, grace_s=settings.grace_s)
            if refuses
            else None
        )
        policy = replace(POLICIES["conserve"], overload=limits)
        scenario = self.scenario
        return Cluster(
            scenario.fit(self.costs),
            scenario.limits,
            policy.with_objectives(self.ttft_slo_ms, self.tbt_slo_ms),
            1,
            metrics,
            self.seed,
            EndlessSupply(scenario.offline.draw(self.seed), scenario.offline_in_flight),
        )


def find_share(outcomes: Sequence[Outcome]) -> float:
    """Goodput at the highest load as a part of the best."""
    return outcomes[-1].goodput_per_s / max(outcome.goodput_per_s for outcome in outcomes)


def make_table(outcomes: Sequence[Outcome], title: str) -> Table:
    """A row for each load."""
    table = Table(title=title, title_justify="left")
    for column in (
        "load",
        "offered/s",
        "goodput/s",
        "refused/s",
        "TTFT p99, ms",
        "TTFT in time",
        "TBT p99, ms",
        "offline tok/s",
    ):
        table.add_column(column, justify="right")
    for one in outcomes:
        table.add_row(
            f"{one.load:g}x",
            f"{one.offered_per_s:.1f}",
            f"{one.goodput_per_s:.1f}",
            f"{sum(one.refused_per_s.values()):.1f}",
            f"{one.ttft_p99_ms:,.0f}",
            f"{one.ttft_attainment:.1%}",
            f"{one.tbt_p99_ms:,.0f}",
            f"{one.offline_tokens_per_s:,.0f}",
        )
    return table


def main(
    workload: Annotated[str, typer.Option(help=f"One of {', '.join(SCENARIOS)}.")] = "chat",
    profile: Annotated[str, typer.Option(help="GPU/model.")] = "h100/llama-3.1-8b",
    ttft_slo_ms: Annotated[float, typer.Option(min=1.0)] = 500.0,
    tbt_slo_ms: Annotated[float, typer.Option(min=1.0)] = 50.0,
    duration: Annotated[float, typer.Option(min=5.0, help="Seconds that are measured.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    out: Annotated[Path, typer.Option(help="Folder for study.json.")] = Path("out/overload"),
) -> None:
    """Simulates each load twice, prints both tables, and ends with 1 where too little goodput is left."""
    study = Study(SCENARIOS[workload], find_profile(profile).costs, ttft_slo_ms, tbt_slo_ms, duration, seed)
    console = Console(highlight=False)
    capacity_per_s = study.find_capacity()
    found = {
        name: [study.run(load, capacity_per_s, refuses=refuses) for load in LOADS]
        for name, refuses in (("all taken in", False), ("refused beyond capacity", True))
    }
    for name, outcomes in found.items():
        console.print(make_table(outcomes, f"{workload}, {profile}, seed {seed}, {name}"))
        console.print(f"Goodput at {LOADS[-1]:g}x is {find_share(outcomes):.1%} of the best.")
    returned = study.follow_return(LOADS[-1], capacity_per_s)
    console.print(
        f"Offline tokens/s in the last second of {LOADS[-1]:g}x, and in those after it at {QUIET_LOAD:g}x: "
        + ", ".join(f"{rate:,.0f}" for rate in returned)
    )
    kept = {name: [outcome.model_dump() for outcome in outcomes] for name, outcomes in found.items()}
    write_json(out / "study.json", {"seed": seed, **kept, "return_tokens_per_s": returned})
    if find_share(found["refused beyond capacity"]) < LEAST_SHARE:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
