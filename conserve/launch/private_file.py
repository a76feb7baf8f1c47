"""Files and folders that only the user who runs the stack may look into."""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Replaces a file at once, readable for its owner only: a reader sees the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


def make_private_folder(path: Path) -> None:
    """Makes a folder that only its owner may enter, below one that everybody may write, such as /tmp.

    Raises:
        OSError: it cannot be made, or somebody else has made it first.
    """
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if path.is_symlink() or found.st_uid != os.getuid():
        raise PermissionError(f"{path} must be a folder of your own, and is somebody else's: remove it")
    if found.st_mode & 0o077:
        path.chmod(0o700)
