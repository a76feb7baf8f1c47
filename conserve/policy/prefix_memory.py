"""Which replica has computed which beginning of a prompt: what a router remembers of the prompts it has sent.

A prompt is cut where its length has grown by a quarter since the cut before, and what stands before each cut is kept as
a digest: so a prompt of any length takes some tens of digests, and four fifths of what two have in common is found.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from hashlib import blake2b
from typing import Final, Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_CUT_CHARS: Final = 256
"""What is shorter is not remembered: it is as soon computed as found."""
CUT_GROWTH: Final = 1.25
MOST_CUTS: Final = 40
"""The last one is after some 1.5 million characters."""
CHARS_PER_TOKEN: Final = 4.0
"""Of English text, about; the router has no tokeniser. It compares replicas, which share its error."""
MESSAGE_TOKENS: Final = 8
"""What a chat template adds to a message, about."""
LIFETIME_S: Final = 300.0
"""What was not asked for again for so long has probably made room for others in the replica's KV cache."""
HOLDERS: Final = 4
"""So many replicas are remembered for a prefix, the latest ones."""


class Cut(NamedTuple):
    """The beginning of a prompt: a digest of it, and how many tokens it has."""

    digest: bytes
    tokens: float


class Prompt(NamedTuple):
    """What a router knows of a prompt.

    Attributes:
        tokens: About how many.
        cuts: Its beginnings, the shortest first.
    """

    tokens: float
    cuts: tuple[Cut, ...] = ()


def _list_cuts() -> tuple[int, ...]:
    cuts = [FIRST_CUT_CHARS]
    while len(cuts) < MOST_CUTS:
        cuts.append(int(cuts[-1] * CUT_GROWTH))
    return tuple(cuts)


_CUTS: Final = _list_cuts()


def measure_prompt(pieces: Iterable[str], token_count: int = 0) -> Prompt:
    """What a router has to know of a prompt.

    Args:
        pieces: Its text; that of a chat message by message, with who says it.
        token_count: Tokens that it has besides, where it is given as tokens.
    """
    parts = [*pieces]
    text = "\x1e".join(parts)
    tokens = len(text) / CHARS_PER_TOKEN + MESSAGE_TOKENS * max(0, len(parts) - 1) + token_count
    digest = blake2b(digest_size=8)
    cuts, begin = [], 0
    for end in _CUTS:
        if end > len(text):
            break
        digest.update(text[begin:end].encode("utf-8", "surrogatepass"))
        cuts.append(Cut(digest.digest(), end / CHARS_PER_TOKEN))
        begin = end
    return Prompt(max(1.0, tokens), tuple(cuts))


class PrefixMemory(Generic[Key]):
    """Remembers prefixes, those that were asked for lately.

    Args:
        capacity: Most prefixes, of some 200 bytes each.
    """

    def __init__(self, capacity: int = 32_768) -> None:
        self._capacity = capacity
        self._holders: OrderedDict[bytes, dict[Key, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def add(self, prompt: Prompt, replica: Key, now_s: float) -> None:
        """A replica computes this prompt."""
        for digest, _ in prompt.cuts:
            holders = self._holders.setdefault(digest, {})
            self._holders.move_to_end(digest)
            holders.pop(replica, None)
            holders[replica] = now_s
            if len(holders) > HOLDERS:
                del holders[next(iter(holders))]
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)

    def find(self, prompt: Prompt, now_s: float) -> dict[Key, float]:
        """How many tokens of a prompt each replica has probably computed; nothing of those that have none."""
        found: dict[Key, float] = {}
        for digest, tokens in prompt.cuts:
            holders = self._holders.get(digest)
            if holders is None:
                break  # Where there is no shorter one there is no longer one.
            for replica, seen_s in holders.items():
                if now_s - seen_s < LIFETIME_S:
                    found[replica] = tokens
        return found
