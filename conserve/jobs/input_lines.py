"""Finds single lines of an input file. Blocking; use it in a thread."""

from __future__ import annotations

import json
from array import array

from conserve.jobs.files import FileStore


class InputLines:
    """Lines of one input file by number. Where they begin is found out once, when the first one is asked for."""

    def __init__(self, store: FileStore, file_id: str) -> None:
        self._storage = store.storage
        self._path = store.file_path(file_id)
        self._starts: array[int] | None = None

    def custom_id(self, line: int) -> str:
        """The `custom_id` of a line (from 1) of a validated file.

        Raises:
            OSError: the storage fails, or the file is shorter than it was.
        """
        starts = self._starts = self._starts or self._find_starts()
        if line >= len(starts):
            raise OSError(f"{self._path} ends before line {line}.")
        offset = starts[line - 1]
        return str(json.loads(self._storage.read(self._path, offset, starts[line] - offset))["custom_id"])

    def _find_starts(self) -> array[int]:
        """Where each line begins, and where the last one ends."""
        starts = array("Q", [0])
        size = 0
        for chunk in self._storage.chunks(self._path):
            at = chunk.find(b"\n")
            while at >= 0:
                starts.append(size + at + 1)
                at = chunk.find(b"\n", at + 1)
            size += len(chunk)
        if starts[-1] != size:
            starts.append(size)  # The last line has no end of its own.
        return starts
