"""Prompts of a wanted length for a server whose tokenizer is not at hand: common words, most of them one token each."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np

from loadtests.traces import PREFIX_BLOCK_TOKENS

_TEXT: Final = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power
hour game line end member law car city community name president team minute idea body information back parent face
others level office door health person art war history party result change morning reason research girl guy moment air
teacher force education foot boy age policy music market sense road form table court sound plan rate field light paper
space ground north south east west river island mountain
"""
WORDS: Final = tuple(_TEXT.split())


class Wording:
    """Writes prompts; the same seed gives the same ones.

    Args:
        seed: Of the words.
        length_scale: Lengths of the prompts as a share of those of the trace that prefix ids come from.
    """

    def __init__(self, seed: int, length_scale: float = 1.0) -> None:
        self._generator = np.random.default_rng([seed, 6])
        self._block_words = max(1, round(PREFIX_BLOCK_TOKENS * length_scale))
        self._write_block = functools.lru_cache(maxsize=10_000)(self._write_block_uncached)

    def write(self, words: int, prefix_ids: tuple[int, ...] = ()) -> str:
        """So many words; prompts with the same first prefix ids begin with the same words, others soon differ."""
        known = [word for prefix_id in prefix_ids for word in self._write_block(prefix_id)][:words]
        return " ".join(known + self._draw(self._generator, words - len(known)))

    def _write_block_uncached(self, prefix_id: int) -> list[str]:
        return self._draw(np.random.default_rng([prefix_id, 8]), self._block_words)

    @staticmethod
    def _draw(generator: np.random.Generator, count: int) -> list[str]:
        return [WORDS[index] for index in generator.integers(0, len(WORDS), max(0, count))]
