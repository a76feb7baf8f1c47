"""How much host memory can be had, and is taken for KV blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

CGROUP: Final = Path("/sys/fs/cgroup")
"""Where Linux shows the control group of a container (version 2)."""

AUTO_BYTES: Final = 4 * 2**30


def count_available_bytes(cgroup: Path = CGROUP) -> int:
    """Memory that can be had without swapping, of the machine and of the container that this process is in."""
    machine = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        lines = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        reclaimable = next((int(value) for name, value in lines if name == "inactive_file"), 0)
    except (OSError, ValueError):
        return machine
    return machine if limit == "max" else min(machine, int(limit) - used + reclaimable)


def choose_host_kv_bytes(wanted_bytes: int | None, available_bytes: int | None = None) -> int:
    """Host memory for KV blocks of one engine, as the machine it starts on has it.

    Args:
        wanted_bytes: What the operator wants; None for `AUTO_BYTES`, or a quarter of what is available if that is less.
        available_bytes: By default what `count_available_bytes` finds.

    Raises:
        ValueError: there is not so much; names the setting.
    """
    available = count_available_bytes() if available_bytes is None else available_bytes
    if wanted_bytes is None:
        return min(AUTO_BYTES, available // 4)
    if wanted_bytes > available:
        raise ValueError(
            f"engine.host_kv_gib: {wanted_bytes / 2**30:.1f} GiB are wanted, {available / 2**30:.1f} GiB of host "
            "memory are available: set less, 0 for no checkpoints, or `auto`"
        )
    return wanted_bytes
