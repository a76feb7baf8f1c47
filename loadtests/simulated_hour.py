"""One cluster of those that `simulator_speed` measures: replicas that serve chats beside an endless backlog."""

from __future__ import annotations

import argparse
import resource
import time
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
BOUNDS_S: Final = {64: 60.0, 1_000: 600.0}


def measure(arguments: Sequence[str]) -> str:
    """Simulates one cluster, as the options of the command line say. Returns its row of the table."""
    parser = argparse.ArgumentParser(prog="simulator_speed")
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--trace", type=Path, help="instead of a generated one")
    parser.add_argument("--profile", default="a100-40g/llama-2-7b")
    parser.add_argument("--policy", default="conserve", choices=[*POLICIES])
    parser.add_argument(
        "--rate", type=float, help="online requests a second of one replica; default: 30 %% of capacity"
    )
    parser.add_argument("--duration", type=float, default=HOUR_S)
    parser.add_argument("--in-flight", type=int, default=32, help="offline requests of one replica")
    parser.add_argument("--figures", action="store_true", help="also print what was simulated")
    return simulate(parser.parse_args(arguments))


def simulate(options: argparse.Namespace) -> str:
    """One cluster. Returns its row of the table, with the processor time of the process from its beginning."""
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
    cluster.run(scale_rate(arrivals, factor, 1), options.duration)
    took_s = time.process_time()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.figures:
        print(metrics.to_dict())
    bound_s = BOUNDS_S.get(options.replicas) if options.duration == HOUR_S else None
    bound = f"{bound_s:.0f} s" if bound_s is not None else "-"
    return (
        f"| {options.replicas:,} x {options.profile}, {options.duration:,.0f} s | {rate:.2f} | "
        f"{metrics.online_requests:,} online, {metrics.offline_requests:,} offline | {metrics.steps:,} | "
        f"{took_s:.1f} s | {bound} | {peak_mib:,.0f} MiB |"
    )
