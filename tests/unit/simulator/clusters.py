"""Small clusters for tests."""

from __future__ import annotations

from collections.abc import Sequence

from conserve.simulator.cluster import Cluster, Incident
from conserve.simulator.engine_costs import EngineCosts
from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.metrics import Metrics
from conserve.simulator.policies import POLICIES
from conserve.simulator.supply import EndlessSupply
from conserve.simulator.workload import Arrival, OfflineShape

COSTS = EngineCosts(
    iteration_ms=8.0,
    token_ms=0.03,
    attention_ms=1e-6,
    decode_ms=0.04,
    context_ms=5e-5,
    kv_blocks=4_000,
    block_bytes=2 * 2**20,
    layers=32,
    copy_bytes_per_s=30e9,
    stop_ms=1.0,
    resume_ms=1.0,
    stop_lag_layers=1,
)
DOCUMENTS = OfflineShape((2_000, 6_000), (32, 64))


def run_cluster(
    policy: str,
    arrivals: Sequence[Arrival],
    until_s: float,
    *,
    costs: EngineCosts = COSTS,
    offline: OfflineShape | None = DOCUMENTS,
    in_flight: int = 32,
    replicas: int = 1,
    ttft_slo_ms: float = 500.0,
    tbt_slo_ms: float = 60.0,
    limits: EngineLimits | None = None,
    incidents: Sequence[Incident] = (),
    coarse: bool = False,
    seed: int = 1,
) -> Cluster:
    """Runs one; what was measured is in its `metrics`."""
    metrics = Metrics(0.0, until_s, ttft_slo_ms, tbt_slo_ms)
    chosen = POLICIES[policy].with_objectives(ttft_slo_ms, tbt_slo_ms)
    supply = EndlessSupply(offline.draw(seed), in_flight, ttft_slo_ms if chosen.gateway else None) if offline else None
    cluster = Cluster(costs, limits or EngineLimits(64, 2_048), chosen, replicas, metrics, seed, supply, coarse=coarse)
    cluster.run(arrivals, until_s, incidents)
    return cluster


def make_arrivals(count: int, gap_s: float, prompt_tokens: int = 500, output_tokens: int = 50) -> list[Arrival]:
    """Requests at regular times, the first one after a second."""
    return [Arrival(1.0 + number * gap_s, prompt_tokens, output_tokens) for number in range(count)]
