"""How many replicas online requests need, what can be harvested beside them, and what separate clusters would cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from conserve.simulator.cluster import Cluster
from conserve.simulator.engine_costs import EngineCosts
from conserve.simulator.metrics import Metrics
from conserve.simulator.plan_input import PlanInput, cut_busiest, redraw
from conserve.simulator.policies import POLICIES, SimPolicy
from conserve.simulator.supply import EndlessSupply
from conserve.simulator.workload import Arrival, scale_rate

MOST_SIMULATED: Final = 4
"""Of more replicas so many are simulated, with their part of the requests."""
FILL_S: Final = 30.0
QUANTILE: Final = 0.99
MOST_REPLICAS: Final = 100_000
SLO_FACTORS: Final = (0.5, 0.75, 1.0, 1.5, 2.0)
BURST_CVS: Final = (1.0, 2.0, 4.0)
DAY_S: Final = 86_400.0


class PlanError(ValueError):
    """There is no plan for this; the message names what stands in the way."""


@dataclass(frozen=True)
class Outcome:
    """What a number of replicas does.

    Attributes:
        replicas: How many.
        ttft_p99_ms, tbt_p99_ms: Of online requests.
        offline_tokens_per_s: Of all replicas together.
    """

    replicas: int
    ttft_p99_ms: float
    tbt_p99_ms: float
    offline_tokens_per_s: float


@dataclass(frozen=True)
class Variant:
    """The plan under another assumption: its name, what online needs then, and what is harvested beside it."""

    name: str
    alone: Outcome | None
    together: Outcome | None


@dataclass
class Plan:
    """The plan.

    Attributes:
        given: What it is for.
        alone: The fewest replicas that keep the objectives, without batch work.
        together: The same replicas with batch work.
        batch_rate: Offline tokens a second of one replica that does nothing else.
        by_slo, by_burst: Under other objectives, and with other arrivals of the same rate.
    """

    given: PlanInput
    alone: Outcome
    together: Outcome
    batch_rate: float
    by_slo: list[Variant] = field(default_factory=list)
    by_burst: list[Variant] = field(default_factory=list)

    @property
    def tokens_per_day(self) -> float:
        """That can be harvested."""
        return self.together.offline_tokens_per_s * DAY_S

    @property
    def backlog_hours(self) -> float:
        """Until the backlog is done; `inf` if nothing can be harvested."""
        rate = self.together.offline_tokens_per_s
        return self.given.backlog_tokens / rate / 3600 if rate > 0 else math.inf

    @property
    def separate_replicas(self) -> int:
        """Further replicas that would do the batch work as fast, in a cluster of their own."""
        return math.ceil(self.together.offline_tokens_per_s / self.batch_rate) if self.batch_rate > 0 else 0

    @property
    def separate_dollars(self) -> float:
        """What those cost until the backlog is done."""
        hours = self.backlog_hours
        return self.separate_replicas * self.given.price * hours if math.isfinite(hours) else 0.0

    @property
    def separate_dollars_per_day(self) -> float:
        """What those cost each day."""
        return self.separate_replicas * self.given.price * 24.0


def make_plan(given: PlanInput, report: Callable[[str], None] = lambda line: None) -> Plan:
    """Simulates until the fewest replicas are found, and what they harvest.

    Args:
        given: What is planned for.
        report: Is told what is simulated.

    Raises:
        PlanError: No number of replicas keeps the objectives.
    """
    report("online requests alone")
    whole, given = given, cut_busiest(given)
    alone = find_replicas(given)
    report(f"batch work beside them on {alone.replicas} replicas")
    together = simulate_replicas(whole, alone.replicas, with_batch=True)
    report("batch work alone")
    plan = Plan(whole, alone, together, _find_batch_rate(given))
    for factor in SLO_FACTORS:
        report(f"objectives x {factor:g}")
        other = replace(given, ttft_slo_ms=given.ttft_slo_ms * factor, tbt_slo_ms=given.tbt_slo_ms * factor)
        plan.by_slo.append(_vary(f"x {factor:g}", other, alone.replicas))
    for cv in BURST_CVS:
        report(f"gaps between arrivals with a CV of {cv:g}")
        plan.by_burst.append(_vary(f"CV {cv:g}", replace(given, arrivals=redraw(given, cv)), alone.replicas))
    return plan


def find_replicas(given: PlanInput, first: int | None = None) -> Outcome:
    """The fewest replicas with which both P99 keep their objectives.

    Args:
        given: What is planned for.
        first: A guess.

    Raises:
        PlanError: One request alone misses the objectives, or it takes more than `MOST_REPLICAS`.
    """
    known: dict[int, Outcome] = {}

    def keeps(replicas: int) -> bool:
        known[replicas] = simulate_replicas(given, replicas, with_batch=False)
        return known[replicas].ttft_p99_ms <= given.ttft_slo_ms and known[replicas].tbt_p99_ms <= given.tbt_slo_ms

    _check_possible(given)
    low = math.ceil(_find_load(given)) - 1
    high = max(first or 0, low + 1)
    while not keeps(high):
        low, high = high, high * 2
        if high > MOST_REPLICAS or high > 64 * max(1, len(given.arrivals)):
            raise PlanError(
                f"--ttft-slo-ms, --tbt-slo-ms: {low:,} replicas have a P99 of {known[low].ttft_p99_ms:,.0f} ms to the "
                f"first token and {known[low].tbt_p99_ms:,.1f} ms between tokens; no number keeps the objectives"
            )
    while high - low > 1:
        middle = (low + high) // 2
        if keeps(middle):
            high = middle
        else:
            low = middle
    return known[high]


def simulate_replicas(given: PlanInput, replicas: int, *, with_batch: bool) -> Outcome:
    """What so many replicas do, with or without batch work.

    Of many only some are simulated, each with its part of the requests.
    """
    simulated = min(replicas, MOST_SIMULATED)
    arrivals: Sequence[Arrival] = given.arrivals
    if simulated < replicas:
        arrivals = list(scale_rate(given.arrivals, simulated / replicas, given.seed))
    policy = POLICIES["conserve"].with_objectives(given.ttft_slo_ms, given.tbt_slo_ms)
    metrics = _simulate(given, arrivals, simulated, policy if with_batch else replace(policy, has_offline=False))
    return Outcome(
        replicas,
        metrics.ttft.percentile(QUANTILE),
        metrics.tbt.percentile(QUANTILE),
        metrics.offline_tokens_per_s * replicas / simulated,
    )


def _vary(name: str, given: PlanInput, replicas: int) -> Variant:
    try:
        alone = find_replicas(given, replicas)
    except PlanError:
        return Variant(name, None, None)
    return Variant(name, alone, simulate_replicas(given, alone.replicas, with_batch=True))


def _simulate(given: PlanInput, arrivals: Sequence[Arrival], replicas: int, policy: SimPolicy) -> Metrics:
    metrics = Metrics(FILL_S, FILL_S + given.duration_s, given.ttft_slo_ms, given.tbt_slo_ms)
    # What comes first stands for what was there before.
    before = itertools.takewhile(lambda arrival: arrival.arrival_s < FILL_S, arrivals)
    shifted = (replace(arrival, arrival_s=arrival.arrival_s + FILL_S) for arrival in arrivals)
    supply = EndlessSupply(given.batch.draw(given.seed), max(8, given.limits.max_num_seqs // 2))
    cluster = Cluster(given.profile.costs, given.limits, policy, replicas, metrics, given.seed, supply, coarse=True)
    cluster.run(itertools.chain(before, shifted), FILL_S + given.duration_s + FILL_S)
    return metrics


def _find_batch_rate(given: PlanInput) -> float:
    policy = replace(POLICIES["ceiling"], has_online=False).with_objectives(math.inf, math.inf)
    short = replace(given, duration_s=min(given.duration_s, 300.0))
    return _simulate(short, (), 1, policy).offline_tokens_per_s


def _find_load(given: PlanInput) -> float:
    """Replicas that would be busy all the time if requests came one by one: fewer are not enough."""
    costs: EngineCosts = given.profile.costs
    prompts = sum(arrival.prompt_tokens for arrival in given.arrivals)
    outputs = sum(arrival.output_tokens for arrival in given.arrivals)
    busy_ms = prompts * costs.token_ms + outputs * (costs.decode_ms + costs.iteration_ms / given.limits.max_num_seqs)
    return busy_ms / 1e3 / given.duration_s


def _check_possible(given: PlanInput) -> None:
    costs = given.profile.costs
    least_ms = costs.iteration_ms + costs.decode_ms
    if given.tbt_slo_ms < least_ms:
        raise PlanError(
            f"--tbt-slo-ms: {given.tbt_slo_ms:g} is less than the {least_ms:.1f} ms that one token takes "
            f"on {given.profile.name}"
        )
    longest = sorted(arrival.prompt_tokens for arrival in given.arrivals)[int(0.99 * (len(given.arrivals) - 1))]
    prompt_ms = (
        costs.iteration_ms + costs.token_ms * longest + costs.attention_ms * longest * longest / 2 + costs.front_ms
    )
    if given.ttft_slo_ms < prompt_ms:
        raise PlanError(
            f"--ttft-slo-ms: {given.ttft_slo_ms:g} is less than the {prompt_ms:.0f} ms that a prompt of {longest:,} "
            f"tokens (P99) takes on {given.profile.name} alone"
        )
