"""What workers are told once the engine has started, before its first request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

WATCH_ARRIVALS: Final = "watch_arrivals"
OPEN_HOST_POOL: Final = "open_host_pool"
"""Their methods, for `collective_rpc`."""
TIMEOUT_S: Final = 60.0
PIN_TIMEOUT_S: Final = 600.0
"""A GPU's driver pins about a gigabyte of host memory a second."""

CollectiveRpc = Callable[..., Awaitable[list[Any]]]


class Prepared(NamedTuple):
    """What workers can do.

    Attributes:
        stops: Whether they can stop passes.
        copies: Whether they can copy KV blocks to host memory, if that is wanted.
    """

    stops: bool
    copies: bool


async def prepare_workers(collective_rpc: CollectiveRpc, arrivals: Path, host_kv_bytes: int) -> Prepared:
    """Shows the workers where online requests are announced, and has them take host memory for KV blocks.

    Args:
        collective_rpc: Of the engine.
        arrivals: File of the `ArrivalBoard`.
        host_kv_bytes: Host memory of all workers; 0 for none.

    Raises:
        Exception: there is not so much host memory; names the setting.
    """
    if not all(await collective_rpc(WATCH_ARRIVALS, timeout=TIMEOUT_S, args=(str(arrivals),))):
        return Prepared(stops=False, copies=False)
    if not host_kv_bytes:
        return Prepared(stops=True, copies=True)
    slots = await collective_rpc(OPEN_HOST_POOL, timeout=PIN_TIMEOUT_S, args=(host_kv_bytes,))
    return Prepared(stops=True, copies=all(slots))
