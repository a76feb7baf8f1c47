"""How many offline tokens fit into one iteration, so that the online objectives still hold.

How long an iteration may take that offline tokens ride in has three limits:

- an online request that is decoding gets its next token when the iteration ends (TBT objective);
- an online prompt that is waiting or half computed gets its first token when this iteration, or a later one, ends
  (TTFT objective);
- an online request that arrives just after the iteration has begun waits for all of it (TTFT objective of arrivals
  to come, from the prompts seen lately).

And where these leave more, it need be no longer than efficient.

ConServe (arXiv 2410.01228) section 4.3 fills iterations by the first two; the third takes the place of its preemption
within a layer where an iteration cannot be stopped. The first one holds for online prompts, too (`limit_prompts_ms`).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conserve.policy.latency import IterationShape, LatencyModel

EFFICIENT_SHARE = 0.9
"""An iteration need not be longer than what gives this share of the throughput of an endless one: those who read an
answer are held up by a longer one, and on a CPU tokens take longer in a large batch than the overhead saves."""
ARRIVAL_QUANTILE = 0.95
ARRIVALS_KEPT = 128
IDLE_S = 120.0
"""Without an online request for so long, none is waited for."""
LEAST_PROMPTS_SHARE = 0.5
"""Share of an iteration that online prompts get at least, whatever is due to those who decode."""
SMALLEST_CHUNK_TOKENS = 16
"""Parts of a prompt that are shorter than this cost more than they bring."""
SMALLEST_WAIT_SHARE = 0.1
"""Share of the TTFT objective that an iteration may always take, however long the prompts seen lately."""
SMALLEST_WAIT_OVERHEADS = 3.0
"""The same in times of the smallest iteration: an arrival waits for one of those in any case, and where long prompts
alone take all of their objective, offline work would stand still without helping them."""


@dataclass(frozen=True)
class PromptDemand:
    """An online prompt that is not computed to its end.

    Attributes:
        deadline_s: When its first token is due.
        rest_ms: Predicted time of what is left of it, and of prompts before it, after this iteration.
    """

    deadline_s: float
    rest_ms: float


def limit_iteration_ms(
    start_s: float,
    token_due_s: float,
    prompts: Iterable[PromptDemand],
    arrival_limit_ms: float,
    safety_factor: float,
) -> float:
    """The longest predicted time that an iteration may have.

    Args:
        start_s: When it can begin.
        token_due_s: When the earliest next token of a decoding online request is due; `inf` if there is none.
        prompts: Online prompts not yet computed to their end.
        arrival_limit_ms: As `ArrivalGuard.limit_ms` gives it.
        safety_factor: How much longer than predicted iterations may take.

    Returns:
        Milliseconds, 0 when the objectives are already missed; `inf` without objectives.
    """
    available_ms = min(arrival_limit_ms, (token_due_s - start_s) * 1e3)
    for prompt in prompts:
        available_ms = min(available_ms, (prompt.deadline_s - start_s) * 1e3 - prompt.rest_ms * safety_factor)
    return max(0.0, available_ms / safety_factor)


def limit_prompts_ms(available_ms: float, decodes_ms: float) -> float:
    """The longest predicted time of an iteration that computes online prompts beside online decodes.

    A long prompt as a whole would hold up everybody who is reading an answer, so it is computed in parts, as in
    Sarathi-Serve (OSDI 2024). They cost its first token little, and at most twice its time: where the next tokens are
    due too soon, prompts still get half of an iteration.

    Args:
        available_ms: How long the iteration may be for those who decode.
        decodes_ms: Predicted time of the decodes alone.
    """
    return max(available_ms, decodes_ms / (1 - LEAST_PROMPTS_SHARE))


def limit_wait_ms(spare_ms: float, ttft_slo_ms: float, overhead_ms: float) -> float:
    """The longest that an arrival may have to wait for an iteration.

    Args:
        spare_ms: As `ArrivalGuard.spare_ms` gives it.
        ttft_slo_ms: Objective of the arrivals.
        overhead_ms: Time of the smallest iteration.
    """
    return max(spare_ms, SMALLEST_WAIT_SHARE * ttft_slo_ms, SMALLEST_WAIT_OVERHEADS * overhead_ms)


class ArrivalGuard:
    """How long an iteration may be for a request that arrives just after it has begun to meet its TTFT objective."""

    def __init__(self) -> None:
        self._arrivals: deque[tuple[float, int, int]] = deque()  # time, prompt tokens, class
        self._ordered_tokens: list[int] = []
        self._of_class: Counter[int] = Counter()
        self._latest_s = -math.inf

    def observe(self, now_s: float, prompt_tokens: int, request_class: int) -> None:
        """Takes note of an online arrival.

        Args:
            now_s: Now.
            prompt_tokens: To be computed before its first token: its prompt, and those of online requests before it.
            request_class: Place of its class among all classes.
        """
        if len(self._arrivals) == ARRIVALS_KEPT:
            _, tokens, oldest_class = self._arrivals.popleft()
            del self._ordered_tokens[bisect_left(self._ordered_tokens, tokens)]
            self._of_class[oldest_class] -= 1
            if not self._of_class[oldest_class]:
                del self._of_class[oldest_class]
        self._arrivals.append((now_s, prompt_tokens, request_class))
        insort(self._ordered_tokens, prompt_tokens)
        self._of_class[request_class] += 1
        self._latest_s = now_s

    @property
    def typical_tokens(self) -> int:
        """Prompt tokens before the first one of an arrival, at most (95th percentile of recent ones); 0 without any."""
        ordered = self._ordered_tokens
        return ordered[math.ceil(ARRIVAL_QUANTILE * len(ordered)) - 1] if ordered else 0

    def arrivals_per_s(self, now_s: float) -> float:
        """Rate of the arrivals seen lately; 0 before the second one."""
        passed_s = now_s - self._arrivals[0][0] if self._arrivals else 0.0
        return (len(self._arrivals) - 1) / passed_s if passed_s > 0 else 0.0

    def first_token_ms(self, model: LatencyModel) -> float:
        """How long a typical request takes to its first token, once the engine is free for it."""
        return model.predict_ms(IterationShape().add_prefill(max(1, self.typical_tokens), 0)) * model.safety_factor()

    def ttft_slo_ms(self, now_s: float, ttft_slos_ms: Sequence[float]) -> float:
        """The shortest objective of the classes seen lately; `inf` where nobody is expected.

        Args:
            now_s: Now, by the clock of `observe`.
            ttft_slos_ms: TTFT objectives of the classes.
        """
        if now_s - self._latest_s >= IDLE_S:
            return math.inf
        last = len(ttft_slos_ms) - 1
        if not last:
            return ttft_slos_ms[0]
        return min(ttft_slos_ms[min(index, last)] for index in self._of_class)

    def limit_ms(self, now_s: float, ttft_slos_ms: Sequence[float], model: LatencyModel) -> float:
        """The longest an iteration may take; `inf` before the first online arrival, and two minutes after the last.

        Args:
            now_s: Now, by the clock of `observe`.
            ttft_slos_ms: TTFT objectives of the classes. Those that no recent request was of do not count.
            model: Predicts the time of a prompt.
        """
        ttft_slo_ms = self.ttft_slo_ms(now_s, ttft_slos_ms)
        if math.isinf(ttft_slo_ms):
            return math.inf
        return limit_wait_ms(ttft_slo_ms - self.first_token_ms(model), ttft_slo_ms, model.overhead_ms())

    def spare_ms(self, now_s: float, ttft_slos_ms: Sequence[float], model: LatencyModel) -> float:
        """How long a typical long prompt can wait and still meet its objective; negative if it cannot even at once.

        In contrast to `limit_ms`, which takes the same and never leaves less than a few small iterations.
        """
        return self.ttft_slo_ms(now_s, ttft_slos_ms) - self.first_token_ms(model)


def limit_efficient_ms(model: LatencyModel, share: float = EFFICIENT_SHARE) -> float:
    """Time of an iteration that gives this share of the best throughput: a longer one makes requests wait for little.

    The rest of it is overhead: the time of the smallest iteration.
    """
    return model.overhead_ms() / (1 - share)


def size_offline_pass(model: LatencyModel, base: IterationShape, limit_ms: float, max_tokens: int) -> int:
    """Prompt tokens of an iteration without online requests: as many as the limit allows.

    Args:
        model: Predicts its time.
        base: What else the iteration computes (offline decodes).
        limit_ms: The longest it may take; `inf` where nobody is expected to come.
        max_tokens: The largest batch, less the tokens of `base`.
    """
    if math.isinf(limit_ms):
        return max(0, max_tokens)
    return model.fit_prefill_tokens(base, 0, limit_ms, max_tokens)
