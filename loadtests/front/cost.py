"""What the front door costs beside a bare vLLM server: the figures, and what they may be."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from loadtests.report import Percentiles

APPLICATION: Final = "ConServe"
BARE: Final = "bare server"
ALIKE: Final = f"{APPLICATION}, no TBT objective"
"""Its batches are those of the bare server."""
STAGES: Final = ("proxy", "ingress", "replica")
MOST_TTFT_MS: Final = 10.0
"""More at the median would be a defect."""
GOAL_TTFT_MS: Final = 3.0
LEAST_THROUGHPUT: Final = 0.95


class Interval(BaseModel):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


class FrontCost(BaseModel):
    """What the front door costs.

    Attributes:
        turns: Chats of each server that count, one at a time.
        ttft_ms: By server.
        ttft_p50_difference_ms: That of the application less that of the bare server; bootstrap over turns.
        tbt_p50_ms: By server.
        rounds: Of throughput, by each server.
        requests_at_once: Of a round.
        output_tokens_per_s: By server, the mean of the rounds.
        burst_tbt_p99_ms: By server, in these rounds.
        throughput_ratio: Application over bare server, the median of the rounds and their lowest and highest; without
            a TBT objective, where the application has a class for that.
        objective_ratio: The same with the application's TBT objective, if that is another figure.
        stages_ms: Medians of requests that end at each stage; see `stages.py`.
        direct_ttft_p50_ms: TTFT of chats sent to a replica past the proxy and the front.
    """

    turns: int
    ttft_ms: dict[str, Percentiles]
    ttft_p50_difference_ms: Interval
    tbt_p50_ms: dict[str, float]
    rounds: int
    requests_at_once: int
    output_tokens_per_s: dict[str, float]
    burst_tbt_p99_ms: dict[str, float]
    throughput_ratio: Interval
    objective_ratio: Interval | None = None
    stages_ms: dict[str, float]
    direct_ttft_p50_ms: float | None = None


def split_stages(cost: FrontCost) -> list[tuple[str, float]]:
    """What each stage adds to the time to the first token, in ms; together the difference to the bare server."""
    stages = cost.stages_ms
    ours_ms, bare_ms = (cost.ttft_ms[name].p50 for name in (APPLICATION, BARE))
    added = [
        ("proxy, of any request", stages["proxy"]),
        ("front, of any request", stages["ingress"] - stages["proxy"]),
    ]
    if cost.direct_ttft_p50_ms is None:
        added.append(("way to a replica and back", stages["replica"] - stages["ingress"]))
        rest = "a chat's checks, copies and stream; engine"
    else:
        added.append(
            ("proxy and front, of a streamed chat more", ours_ms - cost.direct_ttft_p50_ms - stages["ingress"])
        )
        rest = "way to the replica, replica, engine; less the bare server's engine"
    known_ms = sum(value for _, value in added)
    added.append((rest, ours_ms - known_ms - (bare_ms - stages[BARE])))
    return [*added, ("less the bare server's HTTP", -stages[BARE])]


def describe_bursts(cost: FrontCost) -> list[tuple[str, str, str, str]]:
    """Rows of a table: what, of the application, of the bare server, and the difference; the last has a limit."""
    label, bare = f"Output tokens/s, {cost.requests_at_once} at once", cost.output_tokens_per_s[BARE]
    ours, theirs = cost.burst_tbt_p99_ms[APPLICATION], cost.burst_tbt_p99_ms[BARE]
    rows = [
        (f"TBT p99, {cost.requests_at_once} at once", f"{ours:.0f} ms", f"{theirs:.0f} ms", f"{ours - theirs:+.0f} ms")
    ]
    for name, ratio in ((APPLICATION, cost.objective_ratio or cost.throughput_ratio), (ALIKE, cost.throughput_ratio)):
        if name in cost.output_tokens_per_s:
            rows.append((label, f"{cost.output_tokens_per_s[name]:.0f}", f"{bare:.0f}", _describe(ratio)))
            label = "the same without a TBT objective"
    return rows


def _describe(ratio: Interval) -> str:
    return f"{ratio.value:.1%} ({ratio.low:.1%} to {ratio.high:.1%})"


def find_misses(cost: FrontCost) -> list[str]:
    """What it costs more than it may, as sentences; a figure whose interval holds the limit is unsure."""
    misses = []
    difference, ratio = cost.ttft_p50_difference_ms, cost.throughput_ratio
    if difference.value > MOST_TTFT_MS:
        unsure = " (unsure)" if difference.low <= MOST_TTFT_MS else ""
        misses.append(f"the first token comes {difference.value:.1f} ms later, more than {MOST_TTFT_MS:g}{unsure}")
    if ratio.value < LEAST_THROUGHPUT:
        unsure = " (unsure)" if ratio.high >= LEAST_THROUGHPUT else ""
        misses.append(f"throughput is {ratio.value:.1%} of the bare server's, less than {LEAST_THROUGHPUT:.0%}{unsure}")
    return misses
