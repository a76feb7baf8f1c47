"""What a replica could harvest beside its online load if there were enough batch work: by its latency model.

While there is enough work, what is harvested is measured, and the two are compared: what the model says counts for as
much as it proved to be worth then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from conserve.policy.latency import IterationShape, LatencyModel

UNPROVEN_SHARE: Final = 0.5
"""What a model says counts for so much as long as nothing was harvested to compare it with."""
LEAST_PROOF_S: Final = 300.0
_PROOF_MEMORY_S: Final = 6 * 3_600.0
_PROMPT_TOKENS = 256
_CONTEXT_TOKENS = 1_024
_USUAL_TOKENS = 256.0


@dataclass(frozen=True)
class IterationCosts:
    """What iterations of an engine cost, in ms; all 0 where it is not known.

    Attributes:
        overhead_ms: The iteration itself.
        prompt_token_ms: Each prompt token more.
        decode_ms: Each sequence more that decodes a token.
    """

    overhead_ms: float = 0.0
    prompt_token_ms: float = 0.0
    decode_ms: float = 0.0

    @property
    def known(self) -> bool:
        """Whether they are known."""
        return self.overhead_ms > 0


def measure_costs(model: LatencyModel) -> IterationCosts:
    """The costs that a latency model has learnt, at usual lengths; nothing as long as it is not ready."""
    if not model.ready:
        return IterationCosts()
    overhead_ms = model.overhead_ms()
    prompt_ms = model.predict_ms(IterationShape().add_prefill(_PROMPT_TOKENS, 0)) - overhead_ms
    one, two = (model.predict_ms(IterationShape().add_decodes(count, count * _CONTEXT_TOKENS)) for count in (1, 2))
    return IterationCosts(overhead_ms, max(0.0, prompt_ms) / _PROMPT_TOKENS, max(0.0, two - one))


def find_possible_rate(
    costs: IterationCosts,
    window: int,
    online_decodes: int,
    tbt_slo_ms: float,
    prompt_tokens: float = _USUAL_TOKENS,
    output_tokens: float = _USUAL_TOKENS,
) -> float:
    """Offline tokens a second, prompt and output, that would be computed with enough work.

    With all of the window in the engine, each iteration has a token of each of those requests and as many prompt tokens
    as keep the window full. It takes no longer than the next tokens of online requests can wait.

    Args:
        costs: Of the engine.
        window: Offline requests in flight, at most.
        online_decodes: Online requests that decode.
        tbt_slo_ms: How long they may wait.
        prompt_tokens: Of an offline request.
        output_tokens: Of its answer.
    """
    if window <= 0 or not costs.known:
        return 0.0
    output_tokens = max(1.0, output_tokens)
    request_ms = prompt_tokens * costs.prompt_token_ms + output_tokens * costs.decode_ms
    base_ms = costs.overhead_ms + online_decodes * costs.decode_ms
    limit_ms = max(0.0, tbt_slo_ms - base_ms) if online_decodes else math.inf
    # So much of each iteration is for offline requests, if it may be.
    wanted_ms = window * request_ms / output_tokens
    share = min(1.0, limit_ms / wanted_ms) if wanted_ms > 0 else 1.0
    iteration_tokens = share * window * (1 + prompt_tokens / output_tokens)
    return iteration_tokens / (base_ms + share * wanted_ms) * 1e3


@dataclass(frozen=True)
class Proof:
    """What was harvested while there was enough work, beside what the model said; older times count less.

    Attributes:
        harvested_tokens, possible_tokens: The two.
        seconds: Of how much time.
    """

    harvested_tokens: float = 0.0
    possible_tokens: float = 0.0
    seconds: float = 0.0

    def add(self, harvested_tokens: float, possible_tokens: float, seconds: float) -> Proof:
        """With some more time."""
        kept = math.exp(-seconds / _PROOF_MEMORY_S)
        return Proof(
            kept * self.harvested_tokens + harvested_tokens,
            kept * self.possible_tokens + possible_tokens,
            kept * self.seconds + seconds,
        )

    @property
    def share(self) -> float:
        """For how much of what the model says it counts, 1 at most."""
        if self.seconds < LEAST_PROOF_S or self.possible_tokens <= 0:
            return UNPROVEN_SHARE
        return min(1.0, self.harvested_tokens / self.possible_tokens)
