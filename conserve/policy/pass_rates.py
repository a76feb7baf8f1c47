"""Which size of a pass computes the most tokens a second, as measured.

The latency model takes the time of a token for the same in all sizes. It is not everywhere: on a CPU the activations of
a large pass fall out of the caches, and a thousand tokens take a fifth longer each than some hundreds.
"""

from __future__ import annotations

from conserve.policy.latency import IterationShape

LEAST_TOKENS = 64
"""Smaller iterations say nothing about passes."""
MEMORY = 500
"""After so many iterations of other sizes a size is tried again: it may have been slow for another reason."""
NEAR_BEST = 1.03
"""Among sizes that differ by no more than this, the largest one: it has the least overhead elsewhere."""
_WEIGHT = 0.1
_LEAST_OBSERVED = 3
_PROMPT_SHARE = 0.75


class PassRates:
    """Time per token of iterations by size, in classes of powers of two; recent ones count more."""

    def __init__(self) -> None:
        self._token_ms: dict[int, float] = {}
        self._observed: dict[int, int] = {}
        self._latest: dict[int, int] = {}
        self._count = 0

    def observe(self, shape: IterationShape, measured_ms: float) -> None:
        """Takes note of an iteration that has come to its end; only those that are mostly prompts count."""
        if shape.tokens < LEAST_TOKENS or shape.prefill_tokens < _PROMPT_SHARE * shape.tokens or measured_ms <= 0:
            return
        size = shape.tokens.bit_length()
        token_ms = measured_ms / shape.tokens
        known = self._token_ms.get(size, token_ms)
        self._token_ms[size] = known + _WEIGHT * (token_ms - known)
        self._observed[size] = self._observed.get(size, 0) + 1
        self._count += 1
        self._latest[size] = self._count

    def best_tokens(self, max_tokens: int) -> int:
        """Tokens of a pass, at most; `max_tokens` as long as too few sizes are known to choose from."""
        if len(self._observed) < 2:
            return max_tokens
        known = {
            size: self._token_ms[size]
            for size, count in self._observed.items()
            if count >= _LEAST_OBSERVED and self._count - self._latest[size] < MEMORY
        }
        if len(known) < 2:
            return max_tokens
        best_ms = min(known.values())
        largest = max(size for size, token_ms in known.items() if token_ms <= NEAR_BEST * best_ms)
        if largest == max(known):
            return max_tokens  # Larger ones may be better still.
        return min(max_tokens, (1 << largest) - 1)
