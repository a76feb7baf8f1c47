"""Assembles the output and error files of a batch whose results are frozen. Blocking; run in a thread."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import IO, Literal

from pydantic import BaseModel

from conserve.jobs.batch import ActiveBatch, BatchStatus
from conserve.jobs.claims import StoredResult
from conserve.jobs.files import FileStore
from conserve.jobs.results import format_error
from conserve.jobs.segments import SegmentReader
from conserve.jobs.validation import split_lines

_KINDS = ("output", "error")
_NOT_RUN = {
    BatchStatus.EXPIRED: ("batch_expired", "The completion window of the batch ended before this request was done."),
    BatchStatus.CANCELLED: ("batch_cancelled", "The batch was cancelled before this request was done."),
}


class AssembledFile(BaseModel):
    """A finished file: `lines` requests in `bytes` bytes."""

    id: str
    lines: int = 0
    bytes: int = 0


class Manifest(BaseModel):
    """Record of the finished files of a batch, stored beside them once both are complete.

    When it is there, finalizing the batch again (after a crash, or a failover of Redis to an older state) uses it.
    """

    batch_id: str
    output: AssembledFile | None
    error: AssembledFile | None


def assemble(
    store: FileStore, batch: ActiveBatch, results: Mapping[int, StoredResult], max_line_bytes: int
) -> Manifest:
    """Writes the files of a batch in the order of its input lines, and returns their record.

    Every line of the input goes to exactly one of them: to the output file what succeeded, to the error file what
    failed and what was never done. A file without lines is not made.

    Raises:
        OSError: the storage fails, a segment is not there, or the input file is shorter than it was.
        ValueError: a request of a completed batch has no result.
    """
    path = store.manifest_path(batch.batch_id)
    if store.storage.exists(path):
        return Manifest.model_validate_json(store.storage.read(path))
    with ExitStack() as stack:
        sinks = {kind: _Sink(store, batch.batch_id, kind, stack) for kind in _KINDS}
        segments = stack.enter_context(SegmentReader(store, batch.batch_id))
        custom_ids = _custom_ids(store, batch, results, max_line_bytes)
        for line in range(1, batch.total + 1):
            result = results.get(line)
            if result is not None and result.segment is not None:
                sinks[result.kind].write(segments.read(result.segment, result.offset, result.length))
                continue
            if result is not None:
                code, message = result.code, result.message
            elif batch.outcome in _NOT_RUN:
                code, message = _NOT_RUN[batch.outcome]
            else:
                raise ValueError(f"Line {line} of the completed batch {batch.batch_id} has no result.")
            custom_id = next(custom_ids, None)
            if custom_id is None:  # A StopIteration could not leave the thread: the caller would wait for ever.
                raise OSError(f"Input file {batch.input_file_id} of batch {batch.batch_id} ends before line {line}.")
            sinks["error"].write(format_error(batch.batch_id, line, custom_id, code, message))
    manifest = Manifest(batch_id=batch.batch_id, output=sinks["output"].done(), error=sinks["error"].done())
    with store.storage.create(path) as file:
        file.write(manifest.model_dump_json().encode())
    return manifest


def file_id_of(batch_id: str, kind: Literal["output", "error"] | str) -> str:
    """The id of a batch's output or error file: the same however often the batch is finalized."""
    return "file-" + hashlib.sha256(f"{batch_id}:{kind}".encode()).hexdigest()[:32]


def delete_leftovers(store: FileStore, batch_id: str) -> None:
    """Deletes what assemblies of a batch that were killed have left; for a batch that has ended."""
    for path in (*(store.file_path(file_id_of(batch_id, kind)) for kind in _KINDS), store.manifest_path(batch_id)):
        store.storage.delete_leftovers(path)


def _custom_ids(
    store: FileStore, batch: ActiveBatch, results: Mapping[int, StoredResult], max_line_bytes: int
) -> Iterator[str]:
    """Yields the `custom_id` of each line without a stored result line; reads the input file only when asked."""
    chunks = store.storage.chunks(store.file_path(batch.input_file_id))
    for raw in split_lines(chunks, max_line_bytes):
        if raw.place.line > batch.total:
            return
        result = results.get(raw.place.line)
        if result is None or result.segment is None:
            if raw.text is None:
                raise ValueError(f"Line {raw.place.line} of {batch.input_file_id} is longer than `max_line_bytes` now.")
            yield json.loads(raw.text)["custom_id"]


class _Sink:
    """One of the two files; made with its first line, complete when the stack ends without an exception."""

    def __init__(self, store: FileStore, batch_id: str, kind: str, stack: ExitStack) -> None:
        self._store = store
        self._stack = stack
        self._file: IO[bytes] | None = None
        self._assembled = AssembledFile(id=file_id_of(batch_id, kind))

    def write(self, content: bytes) -> None:
        if self._file is None:
            path = self._store.file_path(self._assembled.id)
            self._file = self._stack.enter_context(self._store.storage.create(path))
        self._file.write(content)
        self._assembled.lines += 1
        self._assembled.bytes += len(content)

    def done(self) -> AssembledFile | None:
        return self._assembled if self._assembled.lines else None
