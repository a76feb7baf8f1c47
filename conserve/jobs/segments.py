"""Reads result lines back from the segments that replicas have written."""

from __future__ import annotations

from collections import OrderedDict
from typing import IO

from conserve.jobs.files import FileStore

_OPEN_SEGMENTS = 16


class SegmentReader:
    """Reads the result segments of a batch; keeps the last few open, as neighbours often lie in the same ones.

    Blocking; to be used as a context manager, in a thread.
    """

    def __init__(self, store: FileStore, batch_id: str) -> None:
        self._store = store
        self._batch_id = batch_id
        self._open: OrderedDict[str, IO[bytes]] = OrderedDict()

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def read(self, segment: str, offset: int, length: int) -> bytes:
        """Reads one result line.

        Raises:
            FileNotFoundError: there is no such segment (any more).
            OSError: the storage fails, or there is no line at that place.
        """
        file = self._open.pop(segment, None)
        if file is None:
            file = self._store.storage.open(self._store.segment_path(self._batch_id, segment))
            if len(self._open) >= _OPEN_SEGMENTS:
                self._open.popitem(last=False)[1].close()
        self._open[segment] = file
        file.seek(offset)
        content = file.read(length)
        if len(content) != length or not content.endswith(b"\n"):
            raise OSError(f"Segment {segment} of batch {self._batch_id} has no whole line at byte {offset}.")
        return content
