"""Prompts of random tokens: no two alike, unless they are meant to share a prefix."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.traces import PREFIX_BLOCK_TOKENS

_SPECIAL_NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")


class PromptError(ValueError):
    """Of a model's folder it cannot be told which tokens it has; the message names the file."""


def read_vocabulary(model: Path) -> list[int]:
    """The token ids of a model's folder, without special ones.

    Raises:
        PromptError: its `config.json` does not say how many there are.
    """
    path = model / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        size = int(config["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        raise PromptError(f"{path}: no vocab_size can be read from it: {type(error).__name__}: {error}") from error
    special: set[int] = set()
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        special.update(value if isinstance(value, list) else [value] if value is not None else [])
    tokenizer = model / "tokenizer.json"
    if tokenizer.is_file():
        added = json.loads(tokenizer.read_text(encoding="utf-8")).get("added_tokens", [])
        special.update(token["id"] for token in added)
    return [token for token in range(size) if token not in special]


class PromptMaker:
    """Makes prompts of the given token ids."""

    def __init__(self, vocabulary: list[int]) -> None:
        self._vocabulary = np.asarray(vocabulary, dtype=np.int64)
        self._make_named = functools.lru_cache(maxsize=100_000)(self._make_named_uncached)

    def make(self, generator: np.random.Generator, tokens: int) -> tuple[int, ...]:
        """So many tokens, as the generator has them."""
        return tuple(self._vocabulary[generator.integers(0, len(self._vocabulary), tokens)].tolist())

    def make_shared(self, seed: int, group: int, tokens: int) -> tuple[int, ...]:
        """What all prompts of a group begin with."""
        return self._make_named((seed, group), tokens)

    def make_chained(
        self, generator: np.random.Generator, tokens: int, prefix_ids: tuple[int, ...], length_scale: float
    ) -> tuple[int, ...]:
        """So many tokens, of which those that `prefix_ids` of a trace stand for are the same wherever the ids are.

        Args:
            generator: For the tokens that no id stands for.
            tokens: Length of the prompt.
            prefix_ids: Each stands for 512 tokens of the trace, in their order.
            length_scale: The prompt's length as a share of the trace's.
        """
        block_tokens = max(1, round(PREFIX_BLOCK_TOKENS * length_scale))
        # The block of an id is drawn at its full length, so that a prompt that ends in it shares what it has of it.
        blocks = (self._make_named((prefix_id,), block_tokens) for prefix_id in prefix_ids)
        known = tuple(token for block in blocks for token in block)[:tokens]
        return known + self.make(generator, tokens - len(known))

    def _make_named_uncached(self, name: tuple[int, ...], tokens: int) -> tuple[int, ...]:
        return self.make(np.random.default_rng(name), tokens)
