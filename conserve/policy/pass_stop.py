"""Whether a running pass of offline work gives way between two layers, and how large it may be then.

ConServe (arXiv 2410.01228) section 4.2 stops the pass whenever an online request arrives. Here it is stopped only if
its end comes too late for the newcomer's objective: a pass that is nearly done costs the newcomer little, and a stop
costs the pass something.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from conserve.policy.latency import IterationShape, LatencyModel

PreemptRule = Literal["slo", "always", "never"]
"""`slo`: a pass is stopped if waiting for its end would break the objective of a request that has arrived; `always`: as
soon as one has; `never`."""

LAYERS_TO_STOP = 2
"""A request that arrives just after a safepoint waits for that layer; the next one may be under way on a GPU."""
STOP_SHARE = 0.1
"""Share of the objective to the first token that waiting for a pass to stop may take."""
HOLD_S = 0.25
"""An announced request that has not come after so long (its client has gone, its prompt takes long to tokenise) is
waited for no longer."""
STOPPABLE_EFFICIENT_SHARE = 0.98
"""A pass that can be stopped and continued need not be longer than what gives this share of the best throughput."""
MOST_STOPS_IN_A_ROW = 3
"""After so many stopped passes of which nothing was kept, the next one comes to its end."""
MOST_KEPT_S = 5.0
"""A stopped pass that could not be continued for so long is given up: its prompts go on beside online requests."""
SMALLEST_SLICE_OVERHEADS = 2.0
"""A slice of a pass that is shorter than this many times the smallest iteration costs more than it brings."""
LONGEST_SLICE_OVERHEADS = 10.0
"""A longer one gains little, and those who decode wait for it, however loose their objective."""
LEAST_MIXED_OVERHEADS = 6.0
"""An iteration of so many times the smallest one holds enough prompts beside those who decode."""
SLICE_MARGIN_SHARE = 0.05
"""Share of the time between tokens that is left over behind a slice."""
_SMALLEST_PASS_TOKENS = 16


@dataclass(frozen=True)
class PassProgress:
    """How far a pass is.

    Attributes:
        began_s: When its first layer began.
        now_s: Now, before `layer`.
        first_layer: Where it began: 0, or where a stopped pass goes on.
        layer: The next layer.
        layers: Of the model.
        predicted_end_s: When it was expected to end, when it was scheduled.
    """

    began_s: float
    now_s: float
    first_layer: int
    layer: int
    layers: int
    predicted_end_s: float

    @property
    def layer_s(self) -> float:
        """Time of one of its layers, as far as it has computed some."""
        return (self.now_s - self.began_s) / max(1, self.layer - self.first_layer)

    @property
    def end_s(self) -> float:
        """When it will end: as predicted, and as its own layers show once there are some."""
        if self.layer - self.first_layer < LAYERS_TO_STOP:
            return self.predicted_end_s
        return self.now_s + self.layer_s * (self.layers - self.layer)


def must_stop(rule: PreemptRule, progress: PassProgress, due_s: float, first_token_ms: float) -> bool:
    """Whether a pass is stopped for a request that has arrived.

    Args:
        rule: What the operator wants.
        progress: Of the pass.
        due_s: When the earliest first token of the requests that have arrived is due; `inf` without an objective.
        first_token_ms: How long such a request takes to its first token once the engine is free.
    """
    if rule == "never":
        return False
    if rule == "always":
        return True
    return progress.end_s + first_token_ms / 1e3 > due_s


def is_time_up(progress: PassProgress, until_s: float) -> bool:
    """Whether one more layer would go on beyond `until_s`."""
    return progress.now_s + progress.layer_s > until_s


class Slack(NamedTuple):
    """Time for offline work alone between two iterations of those who decode.

    Attributes:
        until_s: When the next iteration of those has to begin.
        is_enough: Whether a slice of a pass is worth beginning now.
        is_regular: Whether there is enough after each of their iterations: then prompts are computed in slices, and
            not beside them.
    """

    until_s: float
    is_enough: bool
    is_regular: bool


def can_bear_mixed(spare_ms: float, tbt_slo_ms: float, overhead_ms: float) -> bool:
    """Whether prompts go into the iterations of those who decode, and not into slices of passes of their own.

    Tokens cost less in an iteration that runs anyway, but an arrival waits for its end. Where it can bear one that is
    long enough to be efficient, or as long as the objective between tokens allows, slices bring nothing.

    Args:
        spare_ms: How long arrivals can wait and still meet their objective.
        tbt_slo_ms: Objective of those who decode.
        overhead_ms: Time of the smallest iteration.
    """
    return spare_ms >= min(tbt_slo_ms, LEAST_MIXED_OVERHEADS * overhead_ms)


def find_slack(
    start_s: float, token_due_s: float, tbt_slo_ms: float, decodes_ms: float, overhead_ms: float
) -> Slack | None:
    """The time that a pass of offline work may take although online requests decode; None without an objective.

    A pass in slices has two advantages over prompt chunks in the iterations of those who decode: an arrival waits for a
    layer of it and not for its end, and its size is that of an efficient pass and not what the objective leaves.

    Args:
        start_s: When an iteration can begin.
        token_due_s: When the earliest next token of a decoding online request is due.
        tbt_slo_ms: Their objective.
        decodes_ms: How long their iteration takes, with the offline requests that decode in it, at most.
        overhead_ms: Time of the smallest iteration.
    """
    if math.isinf(token_due_s):
        return None
    margin_ms = SLICE_MARGIN_SHARE * tbt_slo_ms
    latest_s = token_due_s - (decodes_ms + margin_ms) / 1e3
    last_tokens_s = token_due_s - tbt_slo_ms / 1e3
    until_s = min(latest_s, last_tokens_s + LONGEST_SLICE_OVERHEADS * overhead_ms / 1e3)
    least_ms = SMALLEST_SLICE_OVERHEADS * overhead_ms
    return Slack(
        until_s,
        is_enough=(until_s - start_s) * 1e3 >= least_ms,
        is_regular=tbt_slo_ms - decodes_ms - margin_ms >= least_ms,
    )


def limit_stoppable_ms(arrival_limit_ms: float, ttft_slo_ms: float, layers: int) -> float:
    """The longest that a pass may take which an arrival can stop: it has to wait for some of its layers only.

    Args:
        arrival_limit_ms: What an arrival can wait, as `ArrivalGuard.limit_ms` gives it.
        ttft_slo_ms: Objective of the arrivals.
        layers: Of the model.
    """
    return min(arrival_limit_ms, STOP_SHARE * ttft_slo_ms) * max(1.0, layers / LAYERS_TO_STOP)


def expected_useful_rate(tokens: float, duration_s: float, arrivals_per_s: float, stop_s: float) -> float:
    """Tokens a second of passes that are thrown away when they are stopped.

    Arrivals are a Poisson process: a pass of length T comes to its end with probability exp(-lT), and it takes
    (1 - exp(-lT)) / l on average until it ends or is stopped; each stop takes `stop_s` more.

    Args:
        tokens: Of one pass, > 0.
        duration_s: Of one pass, > 0.
        arrivals_per_s: Rate of arrivals that stop a pass.
        stop_s: Time lost at each stop besides the work.
    """
    hazard = arrivals_per_s * duration_s
    if hazard < 1e-9:
        return tokens / duration_s
    if hazard > 500.0:
        return 0.0
    return tokens * arrivals_per_s / math.expm1(hazard) / (1.0 + arrivals_per_s * stop_s)


def choose_pass_tokens(
    model: LatencyModel, base: IterationShape, max_tokens: int, arrivals_per_s: float, stop_s: float
) -> int:
    """Prompt tokens of a pass that cannot be continued once it is stopped: those with the best useful rate.

    Args:
        model: Predicts the time of each size.
        base: What else the pass computes (offline decodes).
        max_tokens: The largest pass, less the tokens of `base`.
        arrivals_per_s: Rate of arrivals that stop a pass.
        stop_s: Time lost at each stop besides the work.
    """
    if max_tokens <= _SMALLEST_PASS_TOKENS or arrivals_per_s <= 0:
        return max(0, max_tokens)
    sizes = [max_tokens]
    size = _SMALLEST_PASS_TOKENS
    while size < max_tokens:
        sizes.append(size)
        size *= 2

    def rate(tokens: int) -> float:
        shape = base.add_prefill(tokens, 0)
        return expected_useful_rate(shape.tokens, model.predict_ms(shape) / 1e3, arrivals_per_s, stop_s)

    # Among equals the larger one, for the sake of those that nobody stops.
    return max(sizes, key=lambda tokens: (rate(tokens), tokens))
