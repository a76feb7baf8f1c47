"""What is kept of a pass that was stopped between two layers, so that another one can go on from there.

Exact where the layers of a model hand nothing to each other but hidden states and residual, row by row: then a row can
wait between two layers while others are computed, in whatever order and company it comes back. Its KV of the layers
below is in its blocks, which it keeps; whoever loses them is not continued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

Blocks = tuple[tuple[int, ...], ...]
"""KV block ids of a request, by KV cache group."""


@dataclass(frozen=True)
class Row:
    """The tokens of one request in a batch.

    Attributes:
        start: Tokens of the request computed before.
        tokens: Tokens of it in the batch.
        offset: Where they begin among the tokens of the batch.
        blocks: KV blocks of the request.
    """

    start: int
    tokens: int
    offset: int
    blocks: Blocks


@dataclass(frozen=True)
class KeptPass:
    """A stopped pass.

    Attributes:
        step: Number of its batch.
        layer: The next layer.
        hidden_states, residual: Inputs of that layer, one row a token.
        rows: By request id.
    """

    step: int
    layer: int
    hidden_states: torch.Tensor
    residual: torch.Tensor
    rows: Mapping[str, Row]

    @property
    def size_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.hidden_states, self.residual))

    def select(self, rows: Mapping[str, Row], tokens: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Inputs of the layer for a batch.

        Args:
            rows: Of the batch, in its order, by request id.
            tokens: Of the batch, padding included.

        Returns:
            Hidden states and residual; None if the batch has a row that was not kept, or that differs.
        """
        spans = []
        for request_id, row in rows.items():
            kept = self.rows.get(request_id)
            if kept is None or not _continues(kept, row):
                return None
            spans.append((kept.offset, kept.tokens))
        return _gather(self.hidden_states, spans, tokens), _gather(self.residual, spans, tokens)


def _continues(kept: Row, row: Row) -> bool:
    same_tokens = (kept.start, kept.tokens) == (row.start, row.tokens)
    return same_tokens and all(now[: len(then)] == then for then, now in zip(kept.blocks, row.blocks, strict=True))


def _gather(tensor: torch.Tensor, spans: Sequence[tuple[int, int]], tokens: int) -> torch.Tensor:
    parts = [tensor[offset : offset + length] for offset, length in spans]
    padding = tokens - sum(length for _, length in spans)
    if padding:
        parts.append(tensor.new_zeros((padding, *tensor.shape[1:])))
    # A copy in any case: layers write into their inputs.
    return torch.cat(parts)
