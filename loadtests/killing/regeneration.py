"""Tokens that were generated again, from what the engines of a run have written down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Regeneration:
    """What attempts after the first one have generated again.

    Attributes:
        again: Tokens, by attempt.
        continued: Attempts that began behind the beginning.
    """

    again: list[int] = field(default_factory=list)
    continued: int = 0

    def count_over(self, tokens: int) -> int:
        """Attempts that have generated more than so many tokens again."""
        return sum(one > tokens for one in self.again)


def read_log(lines: Iterable[str]) -> Regeneration:
    """Counts for each attempt after the first one of a request how far others had been where it began.

    Args:
        lines: `request attempt place count`, in the order in which tokens were produced; `place` is that of the first
            of `count` tokens in the answer.
    """
    found = Regeneration()
    reached: dict[str, int] = {}
    attempts: dict[str, set[str]] = {}
    for line in lines:
        request, attempt, place, count = line.split()
        known = attempts.setdefault(request, set())
        if attempt not in known:
            if known:
                found.again.append(max(0, reached[request] - int(place)))
                found.continued += int(place) > 0
            known.add(attempt)
        reached[request] = max(reached.get(request, 0), int(place) + int(count))
    return found
