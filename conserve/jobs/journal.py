"""The journal: tokens that requests have produced so far, so that whoever claims them next can go on.

Per request a head, `tokens|revision`, and parts of up to 128 tokens (`lua/_batch.lua`), three characters a token:
appending rewrites one part, and a token that waits takes about four bytes. The tokens are those of one revision of the
model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conserve.jobs.keys import BatchKeys
from conserve.jobs.scripts import Scripts

MOST_TOKENS = 65_536
"""Of one request. Further ones are not journaled; they are generated again."""

_TOKEN_CHARACTERS = 3
# Printable, and none that JSON or a head would have to escape. 91^3 is more than any vocabulary has.
_DIGITS = "".join(chr(code) for code in range(33, 127) if chr(code) not in '"\\|')
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
_BASE = len(_DIGITS)
_MOST_ENTRIES = 500


@dataclass(frozen=True, slots=True)
class Journal:
    """What a request has produced before: `token_ids` of the model `revision`."""

    revision: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """New tokens of a request, claimed with `fence`: they come behind the first `start` of its answer.

    With `start` 0 they replace what is there.
    """

    line: int
    fence: str
    start: int
    token_ids: Sequence[int]


class JournalWriter:
    """Writes journals of batches.

    Args:
        scripts: Of the client that is used.
    """

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def write(self, keys: BatchKeys, revision: str, entries: Sequence[JournalEntry]) -> dict[int, int]:
        """Adds tokens of requests of one batch, all in one call.

        Args:
            keys: Of the batch.
            revision: Of the model that has produced them, without `|`.
            entries: What is new.

        Returns:
            Line -> how many tokens are there now. It may be another number than expected, after a failover of Redis to
            an older state: then the next entry starts there. Lines whose claim is not the newest, or whose batch takes
            no more results, are not in it: nothing was written.
        """
        counts: dict[int, int] = {}
        for first in range(0, len(entries), _MOST_ENTRIES):
            part = entries[first : first + _MOST_ENTRIES]
            args: list[str | int] = [revision]
            for entry in part:
                args += [entry.line, entry.fence, entry.start, pack_tokens(entry.token_ids)]
            found = await self._scripts.run("journal", keys, args)
            counts |= {entry.line: int(count) for entry, count in zip(part, found, strict=True) if int(count) >= 0}
        return counts


def can_pack(token_ids: Iterable[int]) -> bool:
    """Whether the journal can hold these tokens: they are those of a vocabulary of up to 753,571."""
    return all(0 <= token_id < _BASE**_TOKEN_CHARACTERS for token_id in token_ids)


def pack_tokens(token_ids: Iterable[int]) -> str:
    """Tokens as they are stored: three digits each, of base 91."""
    digits = []
    for token_id in token_ids:
        high, low = divmod(token_id, _BASE)
        digits += [_DIGITS[high // _BASE], _DIGITS[high % _BASE], _DIGITS[low]]
    return "".join(digits)


def unpack_tokens(text: str) -> tuple[int, ...]:
    """The opposite of `pack_tokens`."""
    values = [_VALUES[digit] for digit in text]
    rows = zip(values[::3], values[1::3], values[2::3], strict=True)
    return tuple((high * _BASE + middle) * _BASE + low for high, middle, low in rows)


def read_journal(text: str) -> Journal | None:
    """What `claim` says of a request's journal, `revision|tokens`; None for an empty text: it has none."""
    if not text:
        return None
    revision, _, packed = text.partition("|")
    return Journal(revision, unpack_tokens(packed))
