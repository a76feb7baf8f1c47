"""Iterations in a row that compute the same: what is decided once, and simulated as one step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from conserve.policy.latency import IterationShape
from conserve.simulator.request import SimRequest


class Part(NamedTuple):
    """Iterations in a row within a step. The time of each is that of the one before and `slope_ms`."""

    iterations: int
    first_ms: float
    slope_ms: float
    tokens: int = 0

    def duration_ms(self, count: int) -> float:
        """Of the first `count` of them."""
        return count * (self.first_ms + self.slope_ms * (count - 1) / 2)


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
        parts: Where not all iterations are like the first one: what they are like, one after the other. They take
            their tokens from prompts as they come, online ones first.
        held_count: In so many iterations no offline request decodes.
        online_tokens: Of online prompts among these, when it begins.
        online_end: The token of the step that is the last one of online prompts.
        joinable_count: In so many iterations the prompts of online requests that come may take the place of others.
        joiners: Those that do: request, the token of the step before its first one, how many tokens it takes the place
            of, and how many after those nobody computes: an iteration is shorter where an arrival's prompt is the
            larger part of it.
        joiner_share: Tokens that one of its own takes the place of: it is computed without offline decodes, and its
            context is short.
        overhead_share: Of an iteration that the prompts take the place of each other in.
        spare_tokens: KV memory left for those.
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
    parts: Sequence[Part] = ()
    held_count: int = 0
    online_tokens: int = 0
    online_end: int = 0
    joinable_count: int = 0
    joiners: list[tuple[SimRequest, int, int, int]] = field(default_factory=list)
    joiner_share: float = 1.0
    joinable_tokens: int = 0
    overhead_share: float = 0.0
    spare_tokens: float = 0.0
    admits: bool = True
    is_stoppable: bool = False
    until_s: float = math.inf
    done_share: float = 0.0
    end_share: float = 1.0
    has_online: bool = False

    def duration_ms(self, count: int | None = None) -> float:
        """Of the first `count` iterations, or of all."""
        count = self.count if count is None else count
        if not self.parts:
            return count * (self.first_ms + self.slope_ms * (count - 1) / 2)
        duration_ms = 0.0
        for iterations, first_ms, slope_ms, _ in self.parts:
            if count <= iterations:
                return duration_ms + count * (first_ms + slope_ms * (count - 1) / 2)
            duration_ms += iterations * (first_ms + slope_ms * (iterations - 1) / 2)
            count -= iterations
        return duration_ms

    def list_gaps(self, begin: int, end: int) -> list[tuple[int, float]]:
        """How many iterations there are from the one to before the other, and how long they take: counts, and means."""
        if end <= begin:
            return []
        if not self.parts:
            count = end - begin
            return [(count, (self.duration_ms(end) - self.duration_ms(begin)) / count)]
        gaps = []
        for part in self.parts:
            first, last = max(0, begin), min(end, part.iterations)
            if last > first:
                gaps.append((last - first, part.first_ms + part.slope_ms * (first + last - 1) / 2))
            begin, end = begin - part.iterations, end - part.iterations
        return gaps

    def count_fluid(self, count: int) -> int:
        """Tokens that the first `count` iterations take from prompts as they come."""
        tokens = 0
        for part in self.parts:
            if count <= part.iterations:
                return tokens + count * part.tokens
            tokens += part.iterations * part.tokens
            count -= part.iterations
        return tokens

    def count_online_left(self, count: int) -> int:
        """Tokens of online prompts, joiners included, that the first `count` iterations do not compute."""
        passed = self.count_fluid(count)
        if passed >= self.online_end:
            return 0
        left = max(0, self.online_tokens - passed)
        for request, start, tokens, _ in self.joiners:
            if passed < start + tokens:
                left += request.prompt_tokens * min(tokens, start + tokens - passed) // tokens
        return left

    def count_held(self, count: int) -> int:
        """Iterations of the first `count` ones that online prompts fill, so that no offline request decodes."""
        held = min(count, self.held_count)
        if not self.joiners:
            return held
        passed, size = self.count_fluid(count), self.joinable_tokens
        return held + sum(min(tokens, max(0, passed - start)) // size for _, start, tokens, _ in self.joiners)

    def count_until(self, tokens: int) -> int:
        """How many iterations it takes to take so many tokens from prompts as they come; all if there are fewer."""
        count = 0
        for part in self.parts:
            if tokens <= part.iterations * part.tokens:
                return count - (-tokens // part.tokens)
            tokens -= part.iterations * part.tokens
            count += part.iterations
        return count

    def find_iteration(self, passed_ms: float) -> int:
        """Which iteration, from 0, is under way after so long."""
        if passed_ms <= 0 or self.count == 1:
            return 0
        found, left_ms = 0, passed_ms
        for part in self.parts or (Part(self.count, self.first_ms, self.slope_ms),):
            of_part = _count_in(part.first_ms, part.slope_ms, left_ms)
            found += of_part
            if of_part < part.iterations:
                break
            found += part.iterations - of_part
            left_ms -= part.duration_ms(part.iterations)
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


def _count_in(first_ms: float, slope_ms: float, passed_ms: float) -> int:
    """How many iterations take so long."""
    if passed_ms <= 0:
        return 0
    if slope_ms <= 1e-12:
        return int(passed_ms / first_ms)
    linear = first_ms - slope_ms / 2
    return int((math.sqrt(linear * linear + 2 * slope_ms * passed_ms) - linear) / slope_ms)
