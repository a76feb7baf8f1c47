"""Where a stack on this machine keeps what its state folder cannot hold: sockets, whose paths must be short."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def ray_temp_dir(state_dir: Path) -> Path:
    """Where a stack's Ray keeps sockets and logs: a short path, because socket paths may have 107 bytes only."""
    return Path(tempfile.gettempdir()) / f"conserve-ray-{os.getuid()}-{_digest(state_dir)}"


def proxy_dir(state_dir: Path) -> Path:
    """Where a stack's HAProxy has its configuration and sockets.

    A shorter path still: of the 97 bytes that HAProxy allows, Ray takes 70 for a folder of its own and the names in it.
    """
    return Path(tempfile.gettempdir()) / f"cs-{os.getuid()}-{_digest(state_dir)}"


def _digest(state_dir: Path) -> str:
    return hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]
