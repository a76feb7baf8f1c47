"""`python -m loadtests.routing_study`: rules of routing in the simulator, with offline work on a third of the replicas.

How old reports may be, how many fronts there may be, and what comes of not counting what a front has sent itself.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from conserve.policy.prefix_memory import Prompt
from conserve.policy.routing import TtftRouter
from conserve.simulator.cluster import Cluster
from conserve.simulator.metrics import Metrics
from conserve.simulator.policies import POLICIES
from conserve.simulator.replica import Replica
from conserve.simulator.roofline import find_profile
from conserve.simulator.router import Router, RoutingKind
from conserve.simulator.scenarios import SCENARIOS
from conserve.simulator.supply import EndlessSupply
from loadtests.report import write_json

PROFILE: Final = "h100/llama-3.1-8b"
WARM_UP_S: Final = 20.0
LOADED_SHARE: Final = 3
"""Every third replica has offline work."""
OBJECTIVES_MS: Final = (1_500.0, 200.0)
Engine = Literal["conserve", "stock-priority"]


class Variant(BaseModel):
    """One rule."""

    name: str
    kind: RoutingKind = "slo"
    period_s: float = 0.0
    fronts: int = 1
    choices: int | None = None
    counts_sent: bool = True


class Outcome(BaseModel):
    """What came of it: times to the first token in ms, offline tokens/s of all replicas."""

    variant: Variant
    engine: Engine
    p50_ms: float
    p99_ms: float
    offline_tokens_per_s: float


VARIANTS: Final = (
    Variant(name="Serve's: shorter of two queues", kind="serve"),
    Variant(name="asked for each request"),
    *(Variant(name=f"reports every {period_s:g} s", period_s=period_s) for period_s in (0.2, 0.5, 1.0, 2.0)),
    Variant(name="every 0.5 s, 8 fronts", period_s=0.5, fronts=8),
    Variant(name="every 2 s, 8 fronts", period_s=2.0, fronts=8),
    Variant(name="every 0.5 s, own requests not counted", period_s=0.5, counts_sent=False),
    Variant(name="every 2 s, own requests not counted", period_s=2.0, counts_sent=False),
    *(
        Variant(name=f"every 0.5 s, best of {choices}{', 8 fronts' if fronts > 1 else ''}", period_s=0.5, **more)
        for fronts in (1, 8)
        for choices in (2, 4, 8)
        for more in [{"choices": choices, "fronts": fronts}]
    ),
)


class UnevenSupply(EndlessSupply):
    """Offline work for some replicas only."""

    def top_up(self, replica: Replica, now_s: float) -> None:
        """Gives a replica as many requests as it may have in flight."""
        if replica.number % LOADED_SHARE == 0:
            super().top_up(replica, now_s)


class _Forgetful(TtftRouter[Replica]):
    """Does not count what it has sent."""

    def note_sent(self, replica: Replica, request_id: Hashable, number: int, prompt: Prompt, now_s: float) -> float:
        return prompt.tokens


def simulate(
    variant: Variant, engine: Engine, replicas: int, duration_s: float, rate_per_s: float, seeds: Sequence[int]
) -> Outcome:
    """The mean over the seeds."""
    outcomes = [_simulate(variant, engine, replicas, duration_s, rate_per_s, seed) for seed in seeds]
    p50, p99, offline = (sum(values) / len(seeds) for values in zip(*outcomes, strict=True))
    return Outcome(variant=variant, engine=engine, p50_ms=p50, p99_ms=p99, offline_tokens_per_s=offline)


def _simulate(
    variant: Variant, engine: Engine, replicas: int, duration_s: float, rate_per_s: float, seed: int
) -> tuple[float, float, float]:
    scenario = SCENARIOS["chat"]
    until_s = WARM_UP_S + duration_s
    metrics = Metrics(WARM_UP_S, until_s)
    router = Router(seed, variant.kind, variant.period_s, variant.fronts, variant.choices)
    if not variant.counts_sent:
        router.fronts = [_Forgetful(4 * variant.period_s, random.Random(seed), variant.choices)]
    cluster = Cluster(
        scenario.fit(find_profile(PROFILE).costs),
        scenario.limits,
        POLICIES[engine].with_objectives(*OBJECTIVES_MS),
        replicas,
        metrics,
        seed,
        UnevenSupply(scenario.offline.draw(seed), scenario.offline_in_flight),
        coarse=True,
        router=router,
    )
    cluster.run(scenario.draw_online(rate_per_s * replicas, until_s, seed), until_s + WARM_UP_S)
    return metrics.ttft.percentile(0.5), metrics.ttft.percentile(0.99), metrics.offline_tokens_per_s


def main(
    replicas: Annotated[int, typer.Option(min=2)] = 24,
    duration: Annotated[float, typer.Option(min=5, help="Seconds that are measured.")] = 60.0,
    rate: Annotated[float, typer.Option(min=0.01, help="Online requests a second of each replica.")] = 6.0,
    seeds: Annotated[int, typer.Option(min=1)] = 2,
    engine: Annotated[list[str] | None, typer.Option(help="Policies of engines; by default both.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for study.json.")] = Path("out/routing"),
) -> None:
    """Simulates all variants, and prints a table for each engine."""
    console = Console(highlight=False)
    outcomes: list[Outcome] = []
    engines: tuple[Engine, ...] = ("conserve", "stock-priority")
    for one in engines:
        if engine and one not in engine:
            continue
        table = Table(title=f"{replicas} replicas, {rate:g} online requests/s each, {one}", title_justify="left")
        for column in ("rule", "TTFT p50, ms", "p99, ms", "against Serve's", "offline tok/s"):
            table.add_column(column, justify="left" if column == "rule" else "right")
        base_ms = 0.0
        for variant in VARIANTS:
            outcome = simulate(variant, one, replicas, duration, rate, range(1, seeds + 1))
            outcomes.append(outcome)
            base_ms = base_ms or outcome.p99_ms
            table.add_row(
                variant.name,
                f"{outcome.p50_ms:,.0f}",
                f"{outcome.p99_ms:,.0f}",
                f"{outcome.p99_ms / base_ms:.2f}",
                f"{outcome.offline_tokens_per_s:,.0f}",
            )
        console.print(table)
    write_json(out / "study.json", [outcome.model_dump() for outcome in outcomes])


if __name__ == "__main__":
    typer.run(main)
