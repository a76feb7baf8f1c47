from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conserve.engine.worker_setup import OPEN_HOST_POOL, WATCH_ARRIVALS, Prepared, prepare_workers


@pytest.mark.parametrize(
    ("layers", "slots", "host_kv_bytes", "prepared"),
    [
        ([30, 30], [8, 8], 100, Prepared(stops=True, copies=True)),
        ([30, 0], [8, 8], 100, Prepared(stops=False, copies=False)),
        ([30, 30], [8, 0], 100, Prepared(stops=True, copies=False)),
        ([30, 30], [], 0, Prepared(stops=True, copies=True)),
    ],
)
async def test_all_workers_have_to_be_able_to(
    layers: list[int], slots: list[int], host_kv_bytes: int, prepared: Prepared
) -> None:
    calls: list[tuple[str, Any]] = []

    async def call(method: str, timeout: float, args: tuple[Any, ...]) -> list[int]:
        calls.append((method, args))
        return {WATCH_ARRIVALS: layers, OPEN_HOST_POOL: slots}[method]

    assert await prepare_workers(call, Path("/arrivals"), host_kv_bytes) == prepared
    assert calls[0] == (WATCH_ARRIVALS, ("/arrivals",))
    asked = [args for method, args in calls if method == OPEN_HOST_POOL]
    assert asked == ([(host_kv_bytes,)] if all(layers) and host_kv_bytes else [])
