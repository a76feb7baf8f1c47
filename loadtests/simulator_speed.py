"""How fast the simulator is: replicas that serve an hour of chats beside an endless backlog of batch work.

python -m loadtests.simulator_speed --replicas 64 --trace FILE
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from conserve.simulator.cluster import Cluster
from conserve.simulator.comparison import FILL_S, ComparisonPlan, find_rate
from conserve.simulator.metrics import Metrics
from conserve.simulator.policies import POLICIES
from conserve.simulator.roofline import find_profile
from conserve.simulator.scenarios import SCENARIOS
from conserve.simulator.supply import EndlessSupply
from conserve.simulator.trace_statistics import STATISTICS, generate_trace
from conserve.simulator.traces import read_trace
from conserve.simulator.workload import Arrival, scale_rate

HOUR_S: Final = 3_600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulates, and prints how long it took."""
    parser = argparse.ArgumentParser(prog="simulator_speed", description=__doc__)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--trace", type=Path, help="instead of a generated one")
    parser.add_argument("--profile", default="a100-40g/llama-2-7b")
    parser.add_argument("--policy", default="conserve", choices=[*POLICIES])
    parser.add_argument(
        "--rate", type=float, help="online requests a second of one replica; default: 30 %% of capacity"
    )
    parser.add_argument("--duration", type=float, default=HOUR_S)
    parser.add_argument("--in-flight", type=int, default=32, help="offline requests of one replica")
    options = parser.parse_args(arguments)
    scenario = replace(SCENARIOS["chat"], offline_in_flight=options.in_flight)
    costs = find_profile(options.profile).costs
    rate = options.rate
    if rate is None:
        rate = find_rate(ComparisonPlan(scenario, costs))
    requests = generate_trace(STATISTICS["conv"], 20_000, 1) if options.trace is None else read_trace(options.trace)
    arrivals = [Arrival(one.arrival_s, one.prompt_tokens, one.output_tokens) for one in requests]
    seen_s = arrivals[-1].arrival_s
    factor = rate * options.replicas * seen_s / len(arrivals)
    metrics = Metrics(FILL_S, options.duration)
    supply = EndlessSupply(scenario.offline.draw(1), scenario.offline_in_flight)
    policy = POLICIES[options.policy].with_objectives(1_500.0, 200.0)
    cluster = Cluster(costs, scenario.limits, policy, options.replicas, metrics, 1, supply, coarse=True)
    took_s = cluster.run(scale_rate(arrivals, factor, 1), options.duration)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{options.replicas} replicas of {options.profile}, {options.duration:,.0f} s, {rate:.2f} requests/s each "
        f"({metrics.online_requests:,} online, {metrics.offline_requests:,} offline): {took_s:.1f} s of processor time,"
        f" {metrics.iterations / took_s:,.0f} iterations a second, {metrics.steps:,} decisions, {peak_mib:,.0f} MiB"
    )
    print(metrics.to_dict())
    return 0


if __name__ == "__main__":
    sys.exit(main())
