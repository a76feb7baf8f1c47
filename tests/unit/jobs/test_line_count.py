from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from conserve.jobs.line_count import LineCount


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [([], 0), ([b""], 0), ([b"a"], 1), ([b"a\n"], 1), ([b"a\nb"], 2), ([b"a", b"\nb\n", b""], 2), ([b"\n\n"], 2)],
)
async def test_lines_are_counted_while_a_stream_passes(chunks: list[bytes], lines: int) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    count = LineCount()
    assert [chunk async for chunk in count.watch(stream())] == chunks
    assert count.lines == lines
