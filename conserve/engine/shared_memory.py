"""Files in memory through which the processes of one engine see each other's values."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def create_file(prefix: str, size_bytes: int) -> Path:
    """Makes a file of zeros that only this user can open, in memory where there is a file system for that."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - the name is not guessable
    handle, name = tempfile.mkstemp(prefix=prefix, dir=folder)
    with os.fdopen(handle, "wb") as file:
        file.truncate(size_bytes)
    return Path(name)
