"""Where the bytes of batches lie: input and output files, and the result segments that replicas write."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterable, AsyncIterator

from conserve.jobs.batch import BATCH_ID, FILE_ID
from conserve.jobs.errors import FileTooLargeError
from conserve.jobs.storage import Storage

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class FileStore:
    """Files by id, on any fsspec URL. Ids are checked against their pattern before they become paths.

    Layout under the root: `files/<file id>`, `segments/<batch id>/<segment>.jsonl`, `manifests/<batch id>.json`.
    Blocking storage calls run in threads. Errors of the storage come through as OSError.
    """

    def __init__(self, url: str) -> None:
        self.storage = Storage(url)

    async def write_file(self, file_id: str, chunks: AsyncIterable[bytes], max_bytes: int) -> int:
        """Stores a stream as the content of a file and returns its length in bytes.

        Raises:
            FileTooLargeError: the stream is longer than `max_bytes`; nothing is kept.
        """
        entry = self.storage.create(self.file_path(file_id))
        file = await asyncio.to_thread(entry.__enter__)
        size = 0
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise FileTooLargeError(f"The file is longer than {max_bytes} bytes.")
                await asyncio.to_thread(file.write, chunk)
        except BaseException as error:
            entry.__exit__(type(error), error, error.__traceback__)
            self.storage.delete(self.file_path(file_id))  # For file systems that cannot discard.
            raise
        await asyncio.to_thread(entry.__exit__, None, None, None)
        return size

    async def read_range(self, file_id: str, offset: int, length: int) -> bytes:
        """Reads `length` bytes at `offset` of a file: one request of a batch, for example.

        Raises:
            FileNotFoundError: there is no such content.
            EOFError: the file is shorter.
        """
        return await asyncio.to_thread(self.storage.read, self.file_path(file_id), offset, length)

    async def stream_file(self, file_id: str) -> AsyncIterator[bytes]:
        """Yields the content of a file piece by piece. Raises FileNotFoundError."""
        chunks = self.storage.chunks(self.file_path(file_id))
        try:
            while (data := await asyncio.to_thread(next, chunks, None)) is not None:
                yield data
        finally:
            chunks.close()  # type: ignore[attr-defined]

    async def delete_file(self, file_id: str) -> None:
        """Deletes the content of a file, if it is there, and what a broken upload of it has left; none may go on."""
        path = self.file_path(file_id)
        await asyncio.to_thread(self.storage.delete, path)
        await asyncio.to_thread(self.storage.delete_leftovers, path)

    async def write_segment(self, batch_id: str, segment: str, content: bytes) -> None:
        """Writes an immutable result segment; its name must be new. It is on disk when this returns."""
        await asyncio.to_thread(self._put, self.segment_path(batch_id, segment), content)

    async def delete_segments(self, batch_id: str) -> None:
        """Deletes all result segments of a batch."""
        await asyncio.to_thread(self.storage.delete, f"segments/{_checked(batch_id, BATCH_ID)}")

    def _put(self, path: str, content: bytes) -> None:
        with self.storage.create(path) as file:
            file.write(content)

    def file_path(self, file_id: str) -> str:
        """Path of a file under the root. Raises ValueError for what is no file id."""
        return f"files/{_checked(file_id, FILE_ID)}"

    def segment_path(self, batch_id: str, segment: str) -> str:
        """Path of a result segment under the root. Raises ValueError for what is no batch id or segment name."""
        return f"segments/{_checked(batch_id, BATCH_ID)}/{_checked(segment, _SEGMENT)}.jsonl"

    def manifest_path(self, batch_id: str) -> str:
        """Path of the record of a batch's finished files. Raises ValueError for what is no batch id."""
        return f"manifests/{_checked(batch_id, BATCH_ID)}.json"


def _checked(name: str, pattern: re.Pattern[str]) -> str:
    if pattern.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not of the form {pattern.pattern}")
    return name
