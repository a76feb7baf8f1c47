"""The file storage of a run, which can be made read-only or filled up."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

SIZE_MIB: Final = 256
COMMAND_LIMIT_S: Final = 10.0
BUSY_LIMIT_S: Final = 10.0
"""A file system with files that are being written cannot be made read-only: it is tried for so long."""
BUSY_POLL_S: Final = 0.02
FILLER: Final = "filler"
FILLER_CHUNKS_BYTES: Final = (1 << 20, 1 << 12)


class Storage(Protocol):
    """A folder for files.

    Attributes:
        can_be_full: Whether `fill` does anything.
        description: In words.
    """

    @property
    def can_be_full(self) -> bool: ...
    @property
    def description(self) -> str: ...

    def open(self) -> None:
        """Makes it."""

    def close(self) -> None:
        """Takes it away."""

    def make_read_only(self) -> None:
        """Nothing can be written to it."""

    def fill(self) -> None:
        """Nothing more fits in it."""

    def restore(self) -> None:
        """From here on it can be written to, and there is room."""


def make_storage(folder: Path) -> Storage:
    """The one that this process can have."""
    if os.geteuid() == 0 and shutil.which("mount") is not None:
        return MemoryStorage(folder)
    return FolderStorage(folder)


class MemoryStorage:
    """A small file system in memory of its own, for root: remounted read-only, or filled to its last byte.

    Args:
        folder: Where it is mounted.
    """

    can_be_full = True
    description = f"a file system in memory of {SIZE_MIB} MiB"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        """Mounts it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "conserve-chaos", str(self._folder))

    def close(self) -> None:
        """Unmounts it, whoever still has files of it."""
        if self._folder.is_mount():
            _run("umount", "--lazy", str(self._folder))

    def make_read_only(self) -> None:
        """Remounts it."""
        until_s = time.monotonic() + BUSY_LIMIT_S
        while True:
            try:
                return _run("mount", "-o", "remount,ro", str(self._folder))
            except subprocess.CalledProcessError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(BUSY_POLL_S)

    def fill(self) -> None:
        """Writes a file that takes all the room there is."""
        file = os.open(self._folder / FILLER, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for chunk_bytes in FILLER_CHUNKS_BYTES:
                with suppress(OSError):  # It is full, at last.
                    while os.write(file, bytes(chunk_bytes)):
                        pass
        finally:
            os.close(file)

    def restore(self) -> None:
        """Remounts it, and deletes what fills it."""
        _run("mount", "-o", "remount,rw", str(self._folder))
        (self._folder / FILLER).unlink(missing_ok=True)


class FolderStorage:
    """A folder of an ordinary user, who may not write to it for a while; root may whatever the mode says.

    Args:
        folder: Where it is.
    """

    can_be_full = False
    description = "a folder whose mode changes; it cannot be filled without root"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        """Makes it."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Lets its owner delete it."""
        self.restore()

    def make_read_only(self) -> None:
        """Takes the right to write from the folders in it: files are not written again."""
        self._set_mode(0o500)

    def fill(self) -> None:
        """Does nothing."""

    def restore(self) -> None:
        """Gives it back."""
        self._set_mode(0o700)

    def _set_mode(self, mode: int) -> None:
        for folder, _, _ in os.walk(self._folder):
            os.chmod(folder, mode)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=COMMAND_LIMIT_S)
