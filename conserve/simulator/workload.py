"""What a simulation is about: online arrivals, and an offline backlog."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Arrival:
    """An online request: when it comes, how long it is, and what its prompt begins with (0: nothing in common).

    It is for the replicas of its `pool`; see `Cluster`.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix: int = 0
    prefix_tokens: int = 0
    pool: int = 0


@dataclass(frozen=True)
class OfflineShape:
    """Offline requests; lengths in tokens are drawn evenly from (shortest, longest).

    Attributes:
        prompt_tokens: Of the part that no other request has.
        output_tokens: Of the output.
        groups: Requests of one group begin with the same `prefix_tokens` tokens; 0 for no common prefixes.
    """

    prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    groups: int = 0
    prefix_tokens: int = 0

    @property
    def mean_tokens(self) -> float:
        """Prompt and output of a request."""
        return (sum(self.prompt_tokens) + sum(self.output_tokens)) / 2 + (self.prefix_tokens if self.groups else 0)

    def draw(self, seed: int) -> Iterator[tuple[int, int, int, int]]:
        """Endless requests: prompt tokens, output tokens, prefix and its tokens."""
        generator = np.random.default_rng([seed, 2])
        while True:
            count = max(256, self.groups)
            prompts = generator.integers(*self.prompt_tokens, count, endpoint=True).tolist()
            outputs = generator.integers(*self.output_tokens, count, endpoint=True).tolist()
            if not self.groups:
                yield from ((prompt, output, 0, 0) for prompt, output in zip(prompts, outputs, strict=True))
                continue
            for start in range(0, count - self.groups + 1, self.groups):
                order = generator.permutation(self.groups).tolist()
                for place, group in enumerate(order):
                    yield (
                        self.prefix_tokens + prompts[start + place],
                        outputs[start + place],
                        group + 1,
                        self.prefix_tokens,
                    )


def scale_rate(arrivals: Sequence[Arrival], factor: float, seed: int) -> Iterator[Arrival]:
    """As many requests a second as `factor` times those of the trace: each is repeated, at times near its own.

    The trace's own ups and downs stay; what comes at the same second is more of the same kind.

    Args:
        arrivals: In the order of time.
        factor: More than 0.
        seed: Decides the times, and of which request there is one more.
    """
    generator = np.random.default_rng([seed, 6])
    if factor <= 1:
        keep = generator.random(len(arrivals)) < factor
        yield from (arrival for arrival, kept in zip(arrivals, keep, strict=True) if kept)
        return
    lengths = generator.permutation(len(arrivals)).tolist()
    for number, arrival in enumerate(arrivals):
        copies = int(factor) + (generator.random() < factor - int(factor))
        following = arrivals[number + 1].arrival_s if number + 1 < len(arrivals) else arrival.arrival_s
        offsets = np.sort(generator.random(copies)) * (following - arrival.arrival_s)
        for copy, offset in enumerate(offsets.tolist()):
            other = arrivals[lengths[(number + copy * 7_919) % len(arrivals)]]
            yield Arrival(arrival.arrival_s + offset, other.prompt_tokens, other.output_tokens)
