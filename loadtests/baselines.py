"""Small simulations of every workload, whose figures are kept: a change of a policy that makes them worse is seen.

`make baselines` writes them anew; what has changed then shows in the review.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from conserve.policy.window import WindowRule
from conserve.simulator.batch_supply import BatchSupply, SimBatch
from conserve.simulator.cluster import Cluster, Incident
from conserve.simulator.comparison import ComparisonPlan, compare
from conserve.simulator.metrics import Metrics
from conserve.simulator.policies import POLICIES
from conserve.simulator.roofline import find_profile
from conserve.simulator.scenarios import SCENARIOS
from conserve.simulator.workload import OfflineShape

PATH: Final = Path(__file__).parent.parent / "tests" / "unit" / "simulator" / "baselines.json"
PROFILE: Final = "h100/llama-3.1-8b"
DURATION_S: Final = 120.0
MOST_LATER: Final = 0.02
"""P99 of online requests may be longer by this share."""
MOST_LESS: Final = 0.03
"""Offline tokens a second may be fewer by this share."""
_CLUSTER: Final = "cluster"
NAMES: Final = (*SCENARIOS, _CLUSTER)

Figures = dict[str, float]


def measure(name: str) -> Figures:
    """The figures of one workload under ConServe, or those of a cluster with batches of two tenants."""
    if name == _CLUSTER:
        return _measure_cluster()
    plan = ComparisonPlan(SCENARIOS[name], find_profile(PROFILE).costs, duration_s=DURATION_S)
    return _to_figures(compare(plan, ["conserve"]).metrics["conserve"])


def _measure_cluster() -> Figures:
    """Four replicas, of which one fails and comes back, and three batches, one of which is urgent."""
    scenario = SCENARIOS["chat"]
    metrics = Metrics(30.0, 30.0 + DURATION_S)
    shape = OfflineShape((2_000, 6_000), (64, 256))
    batches = [
        SimBatch("nightly", shape, 4_000, expires_s=86_400.0, tenant="a"),
        SimBatch("evaluation", shape, 4_000, expires_s=86_400.0, tenant="b"),
        SimBatch("urgent", shape, 300, created_s=40.0, expires_s=100.0, tenant="b", priority=1),
    ]
    supply = BatchSupply(batches, WindowRule(64, 64, 32, 0.85, 0.6, 0.05), 1, {"a": 2.0, "b": 1.0})
    cluster = Cluster(
        scenario.fit(find_profile(PROFILE).costs),
        scenario.limits,
        POLICIES["conserve"].with_objectives(400.0, 80.0),
        4,
        metrics,
        1,
        supply,
    )
    arrivals = scenario.draw_online(12.0, 30.0 + DURATION_S, 1)
    cluster.run(arrivals, 60.0 + DURATION_S, [Incident(80.0, 2, "fail"), Incident(110.0, 2, "start")])
    figures = _to_figures(metrics)
    figures["urgent_batch_done_s"] = round(supply.finished_s["urgent"] or 1e6, 3)
    return figures


def _to_figures(metrics: Metrics) -> Figures:
    return {
        "ttft_p99_ms": round(metrics.ttft.percentile(0.99), 3),
        "tbt_p99_ms": round(metrics.tbt.percentile(0.99), 3),
        "offline_tokens_per_s": round(metrics.offline_tokens_per_s, 1),
    }


def read_baselines() -> dict[str, Figures]:
    """The figures that are kept, by workload."""
    found: dict[str, Figures] = json.loads(PATH.read_text(encoding="utf-8"))
    return found


def list_changes(kept: Mapping[str, float], now: Mapping[str, float]) -> Iterator[tuple[bool, str]]:
    """What has changed by more than is let pass: whether it is worse, and a line for people."""
    for name, value in now.items():
        before = kept[name]
        change = value / before - 1 if before else 0.0
        is_rate = name.endswith("_per_s")
        limit = MOST_LESS if is_rate else MOST_LATER
        if abs(change) > limit:
            is_worse = (change < 0) == is_rate
            verdict = "worse" if is_worse else "better: keep it with `make baselines`"
            yield is_worse, f"{name}: {value:,.1f} instead of {before:,.1f} ({change:+.1%}), {verdict}"


def main() -> None:
    """Writes all of them."""
    figures = {}
    for name in NAMES:
        figures[name] = measure(name)
        print(name, *(f"{key} {value:,.1f}" for key, value in figures[name].items()), file=sys.stderr)
    PATH.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
