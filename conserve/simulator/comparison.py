"""Several policies on the same workload: objectives from the online requests alone, then all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from conserve.simulator.cluster import Cluster, Incident
from conserve.simulator.engine_costs import EngineCosts
from conserve.simulator.metrics import Metrics
from conserve.simulator.policies import POLICIES, SimPolicy
from conserve.simulator.scenarios import Scenario
from conserve.simulator.supply import EndlessSupply
from conserve.simulator.traces import TraceRequest
from conserve.simulator.workload import Arrival

FILL_S: Final = 30.0
"""Before anything is measured."""
DRAIN_S: Final = 30.0
TIGHTNESS: Final = 1.25
"""Objectives are this many times the P99 of the online requests alone, as in the benchmark."""


@dataclass(frozen=True)
class ComparisonPlan:
    """What to simulate.

    Attributes:
        scenario: The workload.
        costs: Of an engine.
        replicas: How many.
        duration_s: Of the measured window.
        seed: Decides everything random.
        ttft_slo_ms, tbt_slo_ms: Objectives; None for `tightness` times the P99 of `online-only`.
        tightness: See there.
        online_rate_per_s: Of all replicas together; None for the scenario's share of what they can serve.
        trace: Real requests; without them they are generated.
        incidents: What happens to replicas.
        coarse: As of `EngineState`.
    """

    scenario: Scenario
    costs: EngineCosts
    replicas: int = 1
    duration_s: float = 300.0
    seed: int = 1
    ttft_slo_ms: float | None = None
    tbt_slo_ms: float | None = None
    tightness: float = TIGHTNESS
    online_rate_per_s: float | None = None
    trace: Sequence[TraceRequest] = ()
    incidents: Sequence[Incident] = ()
    coarse: bool = False


@dataclass
class Comparison:
    """What came of it: figures by policy.

    Attributes:
        online_rate_per_s: Of all replicas together.
        ttft_slo_ms, tbt_slo_ms: The objectives.
        metrics: By policy.
        took_s: Processor time of each, in seconds.
    """

    online_rate_per_s: float
    ttft_slo_ms: float
    tbt_slo_ms: float
    metrics: dict[str, Metrics] = field(default_factory=dict)
    took_s: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "online_rate_per_s": round(self.online_rate_per_s, 4),
            "objectives": {"ttft_ms": round(self.ttft_slo_ms, 3), "tbt_ms": round(self.tbt_slo_ms, 3)},
            "runs": {name: metrics.to_dict() for name, metrics in self.metrics.items()},
        }


def find_rate(plan: ComparisonPlan) -> float:
    """Online requests a second of all replicas together."""
    if plan.online_rate_per_s is not None:
        return plan.online_rate_per_s
    capacity = plan.scenario.find_capacity(
        plan.costs, lambda scenario, arrivals: _saturate(plan.costs, scenario, arrivals)
    )
    return plan.scenario.online_share * capacity * plan.replicas


def _saturate(costs: EngineCosts, scenario: Scenario, arrivals: Sequence[Arrival]) -> float:
    metrics = Metrics()
    cluster = Cluster(scenario.fit(costs), scenario.limits, POLICIES["online-only"], 1, metrics, 0)
    horizon_s, step_s = 0.0, 5.0
    cluster.feed(arrivals)
    while metrics.online_finished < len(arrivals):
        horizon_s += step_s
        cluster.run((), horizon_s)
    return max(cluster.idle_since_s, 1e-3)


def compare(
    plan: ComparisonPlan, policies: Sequence[str | SimPolicy], report: Callable[[str], None] = lambda name: None
) -> Comparison:
    """Simulates each policy on the same requests.

    Args:
        plan: What.
        policies: Themselves, or their names.
        report: Is told which one begins.
    """
    rate = find_rate(plan)
    ttft_slo_ms, tbt_slo_ms = plan.ttft_slo_ms, plan.tbt_slo_ms
    arrivals = _draw(plan, rate)
    if ttft_slo_ms is None or tbt_slo_ms is None:
        report("online-only")
        alone, _ = simulate(plan, POLICIES["online-only"], arrivals, math.inf, math.inf)
        ttft_slo_ms = ttft_slo_ms or plan.tightness * alone.ttft.percentile(0.99) or math.inf
        tbt_slo_ms = tbt_slo_ms or plan.tightness * alone.tbt.percentile(0.99) or math.inf
    found = Comparison(rate, ttft_slo_ms, tbt_slo_ms)
    for policy in policies:
        one = POLICIES[policy] if isinstance(policy, str) else policy
        name = one.name
        report(name)
        found.metrics[name], found.took_s[name] = simulate(plan, one, arrivals, ttft_slo_ms, tbt_slo_ms)
    return found


def _draw(plan: ComparisonPlan, rate: float) -> list[Arrival]:
    seconds = FILL_S + plan.duration_s
    return plan.scenario.draw_online(rate, seconds, plan.seed, plan.trace)


def simulate(
    plan: ComparisonPlan, policy: SimPolicy, arrivals: Sequence[Arrival], ttft_slo_ms: float, tbt_slo_ms: float
) -> tuple[Metrics, float]:
    """One policy. Returns what was measured, and the processor time that it took."""
    scenario = plan.scenario
    metrics = Metrics(FILL_S, FILL_S + plan.duration_s, ttft_slo_ms, tbt_slo_ms)
    supply = EndlessSupply(_start_small(scenario), scenario.offline_in_flight, ttft_slo_ms if policy.gateway else None)
    cluster = Cluster(
        scenario.fit(plan.costs),
        scenario.limits,
        policy.with_objectives(ttft_slo_ms, tbt_slo_ms),
        plan.replicas,
        metrics,
        plan.seed,
        supply,
        coarse=plan.coarse,
    )
    took_s = cluster.run(arrivals, FILL_S + plan.duration_s + DRAIN_S, plan.incidents)
    return metrics, took_s


def _start_small(scenario: Scenario) -> Iterator[tuple[int, int, int, int]]:
    """The first requests are parts of others, so that those that decode do not all end together."""
    small = scenario.limits.max_num_seqs // 4
    for number, (prompt, output, prefix, prefix_tokens) in enumerate(scenario.offline.draw(1)):
        if number < small and not prefix:
            yield max(1, prompt // 4), max(1, output * (number + 1) // small), prefix, prefix_tokens
        else:
            yield prompt, output, prefix, prefix_tokens
