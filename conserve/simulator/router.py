"""Which replica an online request goes to."""

from __future__ import annotations

import random
from collections.abc import Sequence

from conserve.simulator.replica import Replica

CHOICES = 2
"""So many replicas are asked, drawn at random, and the one with the lowest predicted TTFT takes the request."""


class Router:
    """The lowest predicted time to the first token of two replicas, as a Serve router with power of two choices.

    Args:
        seed: Decides the draws.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a simulation

    def choose(self, serving: Sequence[Replica], prompt_tokens: int, now_s: float) -> Replica:
        """One of the replicas that serve, of which there is at least one."""
        if len(serving) == 1:
            return serving[0]
        first = serving[int(self._random.random() * len(serving))]
        second = serving[int(self._random.random() * len(serving))]
        if first is second:
            return first
        first_ms = first.predict_ttft_ms(prompt_tokens, now_s)
        return second if second.predict_ttft_ms(prompt_tokens, now_s) < first_ms else first
