from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conserve.jobs.errors import FileTooLargeError
from conserve.jobs.files import FileStore

FILE = "file-0123456789abcdef"
BATCH = "batch_0123456789abcdef"


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    return FileStore(str(tmp_path / "files") if request.param == "local" else f"memory://{tmp_path.name}")


async def test_a_file_is_stored_read_and_deleted(store: FileStore) -> None:
    assert await store.write_file(FILE, stream(b"ab", b"", b"cde"), 5) == 5
    assert await store.read_range(FILE, 1, 3) == b"bcd"
    assert b"".join([chunk async for chunk in store.stream_file(FILE)]) == b"abcde"
    with pytest.raises(EOFError):
        await store.read_range(FILE, 3, 3)
    await store.delete_file(FILE)
    await store.delete_file(FILE)
    with pytest.raises(FileNotFoundError):
        await store.read_range(FILE, 0, 1)


async def test_what_an_upload_of_a_killed_process_has_left_is_deleted_with_the_file(tmp_path: Path) -> None:
    """Its temporary file, which nobody can have renamed."""
    store = FileStore(str(tmp_path))
    entry = store.storage.create(store.file_path(FILE))
    entry.__enter__().write(b"half of it")
    folder = (tmp_path / store.file_path(FILE)).parent
    assert len(list(folder.iterdir())) == 1
    await store.delete_file(FILE)
    assert list(folder.iterdir()) == []
    entry.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


async def test_a_broken_upload_leaves_nothing(store: FileStore, tmp_path: Path) -> None:
    with pytest.raises(FileTooLargeError):
        await store.write_file(FILE, stream(b"abc", b"def"), 5)

    async def break_off() -> AsyncIterator[bytes]:
        yield b"abc"
        raise ConnectionResetError("client went away")

    with pytest.raises(ConnectionResetError):
        await store.write_file(FILE, break_off(), 5)
    assert not store.storage.exists(store.file_path(FILE))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_segments_go_together(store: FileStore) -> None:
    await store.write_segment(BATCH, "writer-1", b"one\n")
    await store.write_segment(BATCH, "writer-2", b"two\n")
    assert store.storage.read(store.segment_path(BATCH, "writer-2"), 1, 2) == b"wo"
    await store.delete_segments(BATCH)
    await store.delete_segments(BATCH)
    assert not store.storage.exists(store.segment_path(BATCH, "writer-1"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "file-../../x1234", "file-12345678/..", "file-1234567\n", ""])
async def test_ids_that_are_no_ids_never_become_paths(store: FileStore, name: str) -> None:
    with pytest.raises(ValueError, match="not of the form"):
        await store.read_range(name, 0, 1)
    with pytest.raises(ValueError, match="not of the form"):
        await store.write_segment(BATCH, name, b"")
    with pytest.raises(ValueError, match="not of the form"):
        await store.delete_segments(name)
