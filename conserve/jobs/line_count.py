"""Counts the lines of a file while it is stored."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator


class LineCount:
    """Lines of a stream that is passed on; the last one need not have an end."""

    def __init__(self) -> None:
        self._ends = 0
        self._is_open = False

    @property
    def lines(self) -> int:
        """How many there were so far."""
        return self._ends + self._is_open

    async def watch(self, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Passes a stream on."""
        async for chunk in chunks:
            if chunk:
                self._ends += chunk.count(b"\n")
                self._is_open = not chunk.endswith(b"\n")
            yield chunk
