"""Files on any fsspec URL: a local folder by default, object stores by URL. Blocking; see `files.FileStore`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

_CHUNK_BYTES = 1 << 20
_TEMPORARY = ".tmp"


class Storage:
    """Whole files that appear at once and never change. Paths are relative to the root and made by us alone.

    On a local folder a file is written beside its place, synced and renamed. Object stores show an object only once
    its upload is complete, so there it is written in place.
    """

    def __init__(self, url: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    def create(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Opens a file for writing; it is there when the block ends, and not at all when the block raises."""
        return self._create_local(Path(self._root, path)) if self._local else self._create_remote(self._full(path))

    @contextmanager
    def _create_local(self, path: Path) -> Iterator[IO[bytes]]:
        _make_folder(path.parent)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_TEMPORARY}")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)  # The name is on disk too.

    @contextmanager
    def _create_remote(self, path: str) -> Iterator[IO[bytes]]:
        # `autocommit=False` lets a broken upload be discarded: closing it otherwise publishes what there is.
        file: Any = self._fs.open(path, "wb", autocommit=False)
        try:
            yield file
            file.close()
            file.commit()
        except BaseException:
            with suppress(NotImplementedError):
                file.discard()
            raise

    @property
    def folder(self) -> Path | None:
        """The local folder that it is; None: it is none."""
        return Path(self._root) if self._local else None

    def create_once(self, path: str, content: bytes) -> bytes:
        """Writes a small file to a local folder unless it is there; returns what is there then."""
        place = Path(self._root, path)
        if not place.exists():
            temporary = f"{path}.{secrets.token_hex(8)}{_TEMPORARY}"
            with self.create(temporary) as file:
                file.write(content)
            with suppress(FileExistsError):  # Of several processes the first one counts.
                os.link(Path(self._root, temporary), place)
                _sync_folder(place.parent)
            self.delete(temporary)
        return place.read_bytes()

    def open(self, path: str) -> IO[bytes]:
        """Opens a file for reading. Raises FileNotFoundError."""
        return self._fs.open(self._full(path), "rb")  # type: ignore[no-any-return]

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Reads a byte range, to the end of the file by default. Raises FileNotFoundError, EOFError if it is short."""
        with self.open(path) as file:
            file.seek(offset)
            data = file.read(-1 if length is None else length)
        if length is not None and len(data) != length:
            raise EOFError(f"{path} ends before byte {offset + length}.")
        return data

    def chunks(self, path: str) -> Iterator[bytes]:
        """Reads a file piece by piece. Raises FileNotFoundError."""
        with self.open(path) as file:
            while data := file.read(_CHUNK_BYTES):
                yield data

    def exists(self, path: str) -> bool:
        """True when there is such a file."""
        return bool(self._fs.exists(self._full(path)))

    def size(self, path: str) -> int:
        """Length of a file in bytes. Raises FileNotFoundError."""
        return int(self._fs.size(self._full(path)))

    def delete(self, path: str) -> None:
        """Deletes a file or a whole folder, if it is there."""
        with suppress(FileNotFoundError):
            self._fs.rm(self._full(path), recursive=True)

    def delete_leftovers(self, path: str) -> None:
        """Deletes what processes that were killed while they wrote this file have left; nobody may be writing it."""
        if self._local:
            place = Path(self._root, path)
            for leftover in place.parent.glob(f"{place.name}.*{_TEMPORARY}"):
                leftover.unlink(missing_ok=True)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"


def _make_folder(folder: Path) -> None:
    """Makes a folder that is on disk by its name, too, and those above it."""
    missing = list(takewhile(lambda one: not one.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for made in missing:
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
