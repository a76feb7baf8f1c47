"""Tides: clusters whose online load goes up and down, in one half of the replicas when it goes down in the other.

Stranded capacity is what offline requests could do beside that load: the offline tokens that the same replicas compute
under the same arrivals when each of them has as many offline requests as it can use at every moment, without a
controller, from an endless backlog of its own (`EndlessSupply`). The engine limits them in both cases by the same
objectives. The harvested share is what the application's controller gets of it: with reports of the round before,
windows, turns, claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import merge

from conserve.policy.window import WindowRule
from conserve.simulator.batch_supply import BatchSupply, Outage, SimBatch
from conserve.simulator.cluster import Cluster, Supply
from conserve.simulator.engine_costs import EngineCosts
from conserve.simulator.metrics import Metrics
from conserve.simulator.policies import POLICIES
from conserve.simulator.scenarios import Scenario
from conserve.simulator.supply import EndlessSupply
from conserve.simulator.workload import Arrival, OfflineShape

POOLS = 2


@dataclass(frozen=True)
class Tides:
    """Online load and batches.

    Attributes:
        costs: Of an iteration.
        scenario: Online requests of a pool; its tide goes once up and down in `period_s`.
        requests_per_s: Online, of one replica on average.
        replicas: Half of them are in each pool.
        period_s: From one low tide to the next.
        duration_s: Of the measured time, which begins after `warmup_s`.
        shape: Of offline requests.
        batches: How many, of `tenants` by turns; so many requests that they do not end.
        rule: Of windows.
        ttft_slo_ms, tbt_slo_ms: Objectives.
        all_knowing_in_flight: Offline requests that each replica has without a controller.
    """

    costs: EngineCosts
    scenario: Scenario
    requests_per_s: float
    replicas: int = 64
    period_s: float = 600.0
    warmup_s: float = 60.0
    duration_s: float = 600.0
    shape: OfflineShape = field(default_factory=lambda: OfflineShape((2_000, 6_000), (64, 256)))
    batches: int = 32
    tenants: int = 8
    rule: WindowRule = field(default_factory=lambda: WindowRule(128, 64, 32, 0.85, 0.6, 0.05))
    ttft_slo_ms: float = 500.0
    tbt_slo_ms: float = 80.0
    all_knowing_in_flight: int = 256

    @property
    def end_s(self) -> float:
        """When the measured time is over."""
        return self.warmup_s + self.duration_s

    def draw_arrivals(self, seed: int) -> list[Arrival]:
        """Online requests of both pools, of which one is at its high tide when the other is at its low one."""
        pools = [self._draw_pool(pool, seed) for pool in range(POOLS)]
        return list(merge(*pools, key=lambda arrival: arrival.arrival_s))

    def _draw_pool(self, pool: int, seed: int) -> list[Arrival]:
        rate_per_s = self.requests_per_s * self.replicas / POOLS
        ahead_s = pool * self.period_s / POOLS
        arrivals: list[Arrival] = []
        start_s = -ahead_s
        while start_s < self.end_s:
            drawn = self.scenario.draw_online(rate_per_s, self.period_s, seed * 1_000 + pool * 100 + len(arrivals))
            arrivals += [replace(one, arrival_s=one.arrival_s + start_s, pool=pool) for one in drawn]
            start_s += self.period_s
        return [one for one in arrivals if 0 <= one.arrival_s < self.end_s]

    def draw_batches(self) -> list[SimBatch]:
        """As many batches as there are, in groups of four whose prompts begin alike."""
        return [
            SimBatch(
                f"batch-{number}",
                self.shape,
                10**7,
                expires_s=1e9 + number,
                tenant=f"tenant-{number % self.tenants}",
                prefix=f"prefix-{number // 4}" if number % 2 else "",
            )
            for number in range(self.batches)
        ]

    def run_all_knowing(self, arrivals: Sequence[Arrival], seed: int) -> Metrics:
        """What could be done: every replica always has more offline requests than it can use."""
        return self._run(arrivals, seed, EndlessSupply(self.shape.draw(seed), self.all_knowing_in_flight))

    def run_controlled(self, arrivals: Sequence[Arrival], seed: int, outage: Outage | None = None) -> Metrics:
        """What the controller's allotments do."""
        return self._run(arrivals, seed, BatchSupply(self.draw_batches(), self.rule, seed, outage=outage))

    def run_alone(self, arrivals: Sequence[Arrival], seed: int) -> Metrics:
        """The online requests without any batches."""
        return self._run(arrivals, seed, None)

    def _run(self, arrivals: Sequence[Arrival], seed: int, supply: Supply | None) -> Metrics:
        metrics = Metrics(self.warmup_s, self.end_s, self.ttft_slo_ms, self.tbt_slo_ms)
        cluster = Cluster(
            self.scenario.fit(self.costs),
            self.scenario.limits,
            POLICIES["conserve"].with_objectives(self.ttft_slo_ms, self.tbt_slo_ms),
            self.replicas,
            metrics,
            seed,
            supply,
            coarse=True,
            pools=POOLS,
        )
        cluster.run(arrivals, self.end_s)
        return metrics
