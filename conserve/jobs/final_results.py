"""The finished files of a batch, read in the order in which their lines were committed.

Blocking; to be used in a thread.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import IO, NamedTuple

from conserve.jobs.files import FileStore
from conserve.jobs.result_id import read_result_id, result_id
from conserve.jobs.validation import split_lines


class _Place(NamedTuple):
    file_id: str
    offset: int
    length: int


class FinalResults:
    """Lines of the output and error file: those committed first, in that order, then the others.

    Args:
        store: Where the files are.
        batch_id: Whose they are.
        file_ids: Of the files that there are.
        settled: Lines of the input in the order of their commits.
        position: How many lines to leave out.

    Raises:
        FileNotFoundError: a file is not there.
    """

    def __init__(
        self, store: FileStore, batch_id: str, file_ids: Sequence[str], settled: Iterable[int], position: int
    ) -> None:
        self._store = store
        places = {id_: place for file_id in file_ids for id_, place in _find_lines(store, file_id)}
        first = {result_id(batch_id, line): None for line in settled}
        order = [*(id_ for id_ in first if id_ in places), *(id_ for id_ in places if id_ not in first)]
        self._places = [places[id_] for id_ in order[position:]]
        self._next = 0

    def read(self, least_bytes: int) -> bytes:
        """The next lines, so many that they have this length; the last ones may have less. Empty: there are no more.

        Raises:
            OSError: the storage fails, or a file is not there any more.
        """
        piece = bytearray()
        with ExitStack() as stack:
            files: dict[str, IO[bytes]] = {}
            while self._next < len(self._places) and len(piece) < least_bytes:
                place = self._places[self._next]
                if place.file_id not in files:
                    path = self._store.file_path(place.file_id)
                    files[place.file_id] = stack.enter_context(self._store.storage.open(path))
                files[place.file_id].seek(place.offset)
                piece += files[place.file_id].read(place.length)
                self._next += 1
        return bytes(piece)


def _find_lines(store: FileStore, file_id: str) -> Iterable[tuple[str, _Place]]:
    for raw in split_lines(store.storage.chunks(store.file_path(file_id)), sys.maxsize):
        if raw.text is not None:
            yield read_result_id(raw.text), _Place(file_id, raw.place.offset, raw.place.length + 1)
