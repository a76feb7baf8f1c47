"""The `id` of a result, by which its place in the input can be told from the result alone."""

from __future__ import annotations

import hashlib

_ID_PREFIX = b'{"id":"'


def result_id(batch_id: str, line: int) -> str:
    """The `id` of the result of a line, wherever and however often it is written."""
    return f"batch_req_{hashlib.sha256(f'{batch_id}:{line}'.encode()).hexdigest()[:32]}"


def read_result_id(content: bytes) -> str:
    """The `id` of a result line that was made here, which begins with it.

    Raises:
        ValueError: it does not.
    """
    if not content.startswith(_ID_PREFIX):
        raise ValueError(f"no result line of ours: {content[:60]!r}")
    return content[len(_ID_PREFIX) : content.index(b'"', len(_ID_PREFIX))].decode("ascii")
