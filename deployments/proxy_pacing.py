"""Large request bodies come through Ray Serve's HTTP proxies no faster than the ingress takes them in.

Ray Serve 2.60 passes bodies on without flow control: what a fast client sends stands in the memory of the proxy and of
the ingress until the ingress has read it, all of it if need be. Where a body is not taken from the connection the
client waits; so a proxy takes the large ones together at a rate that an ingress keeps up with.

Serve's proxies call `build_middlewares` where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it;
`conserve up` sets that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.serve_compat import confine_grpc

RATE_BYTES_PER_S: Final = 64e6
"""Of all large bodies of a proxy together."""
FREE_BYTES: Final = 8_000_000
"""The beginning of each body is not held up."""


class Pace:
    """When so many bytes more may be taken, at a rate.

    Args:
        bytes_per_s: The rate.
        clock: Seconds, monotonic.
    """

    def __init__(self, bytes_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at_s = clock()

    def take(self, count: int) -> float:
        """Takes them; seconds to wait until then."""
        now_s = self._clock()
        wait_s = max(0.0, self._free_at_s - now_s)
        self._free_at_s = now_s + wait_s + count / self._bytes_per_s
        return wait_s


class PacedBodies:
    """Middleware of a proxy.

    Args:
        app: What it stands before.
        pace: At which bodies come in.
    """

    def __init__(self, app: ASGIApp, pace: Pace) -> None:
        self._app = app
        self._pace = pace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        taken = 0

        async def receive_slowly() -> Message:
            nonlocal taken
            message = await receive()
            count = len(message.get("body", b""))
            taken += count
            if taken > FREE_BYTES and count:
                await asyncio.sleep(self._pace.take(count))
            return message

        await self._app(scope, receive_slowly, send)


def build_middlewares() -> list[Middleware]:
    """What a proxy puts before everything else. Fronts call it, too, both before they open ports."""
    confine_grpc()
    return [Middleware(PacedBodies, pace=Pace(RATE_BYTES_PER_S))]
