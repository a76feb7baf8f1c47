"""Iterations in a row that compute the same: what is decided once, and simulated as one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from conserve.policy.latency import IterationShape
from conserve.simulator.request import SimRequest


class Chunk(NamedTuple):
    """Tokens of a prompt that one iteration computes."""

    request: SimRequest
    tokens: int


@dataclass(slots=True)
class Step:
    """A number of iterations of the same requests. The time of each is that of the one before and `slope_ms`.

    Attributes:
        shape: Of the first one.
        first_ms: Time of the first one, once it begins.
        slope_ms: Each next one takes so much longer: contexts grow.
        count: How many.
        online_decodes: Whether online requests that decode get a token in each.
        chunks: Of prompts; with more than one iteration they have the same size in each.
        offline_decodes: Offline requests that decode.
        held: Offline requests that decode but not in this step.
        lead_ms: Before the first one begins.
        begins_s: When the first one begins.
        predicted_ms: Time that the first one was predicted to take.
        fluid_tokens: Of offline prompts in each iteration, taken from one after the other as they come, where
            iterations are not looked at one by one.
        admits: Whether offline requests that wait may begin meanwhile.
        is_stoppable: Whether it may be stopped between two layers.
        until_s: It gives way by then.
        done_share, end_share: Of its layers, those that an earlier step has computed, and those computed when it ends:
            it is stopped there, to be continued.
    """

    shape: IterationShape
    first_ms: float
    slope_ms: float = 0.0
    count: int = 1
    online_decodes: bool = False
    chunks: Sequence[Chunk] = ()
    offline_decodes: int = 0
    held: Sequence[SimRequest] = field(default_factory=tuple)
    lead_ms: float = 0.0
    begins_s: float = 0.0
    predicted_ms: float = 0.0
    fluid_tokens: int = 0
    admits: bool = True
    is_stoppable: bool = False
    until_s: float = math.inf
    done_share: float = 0.0
    end_share: float = 1.0
    has_online: bool = False

    def duration_ms(self, count: int | None = None) -> float:
        """Of the first `count` iterations, or of all."""
        count = self.count if count is None else count
        return count * (self.first_ms + self.slope_ms * (count - 1) / 2)

    def find_iteration(self, passed_ms: float) -> int:
        """Which iteration, from 0, is under way after so long."""
        if passed_ms <= 0 or self.count == 1:
            return 0
        if self.slope_ms <= 1e-12:
            found = int(passed_ms / self.first_ms)
        else:
            linear = self.first_ms - self.slope_ms / 2
            found = int((math.sqrt(linear * linear + 2 * self.slope_ms * passed_ms) - linear) / self.slope_ms)
        # Rounding: the iteration that ends just now is over.
        while found > 0 and self.duration_ms(found) > passed_ms:
            found -= 1
        while found < self.count - 1 and self.duration_ms(found + 1) <= passed_ms:
            found += 1
        return min(found, self.count - 1)

    def count_within(self, limit_ms: float) -> int:
        """How many iterations end within so long, at least 1."""
        if self.duration_ms() <= limit_ms:
            return self.count
        return max(1, self.find_iteration(limit_ms))
