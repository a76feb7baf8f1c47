"""Whether a replica has to go: told by Serve, or because its node goes, or because its engine has died."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Literal, NoReturn

import structlog

from deployments.serve_compat import find_serve_replica, is_node_draining, is_told_to_stop

log = structlog.get_logger(__name__)

LOOK_PERIOD_S: Final = 0.1
NODE_PERIOD_S: Final = 2.0
"""Each time the head of the cluster is asked, by every replica."""

Reason = Literal["stop", "node", "engine"]


class Departure:
    """Looks out for the reasons why a replica has to go.

    Serve 2.60 calls the destructor only after the last online request, which may be long after it has told the replica
    to go; from a node that is drained it takes replicas only once others run in their place.

    Args:
        has_died: whether the engine has ended.
        is_told: whether Serve has told this replica to go.
        is_node_leaving: whether its node was told to; called in a thread, and may take long.
    """

    def __init__(
        self,
        has_died: Callable[[], bool],
        is_told: Callable[[], bool] | None = None,
        is_node_leaving: Callable[[], bool] = is_node_draining,
    ) -> None:
        self._has_died = has_died
        self._is_told = is_told or _find_sign()
        self._is_node_leaving = is_node_leaving
        self._reason: Reason | None = None
        self._begun = asyncio.Event()

    @property
    def reason(self) -> Reason | None:
        """Why it has to go; None: it need not. A dead engine comes before all else."""
        return self._reason

    async def wait(self) -> Reason:
        """Waits until there is a reason."""
        await self._begun.wait()
        return self._reason or "stop"

    async def watch(self) -> NoReturn:
        """Looks for ever, until cancelled."""
        look = asyncio.ensure_future(self._watch_node())
        try:
            while True:
                if self._has_died():
                    self._note("engine")
                elif self._is_told():
                    self._note("stop")
                await asyncio.sleep(LOOK_PERIOD_S)
        finally:
            look.cancel()

    async def _watch_node(self) -> None:
        failed_at_s: float | None = None
        while self._reason is None:
            try:
                if await asyncio.to_thread(self._is_node_leaving):
                    self._note("node")
            except Exception as error:  # noqa: BLE001 - whatever Ray raises while its head is away
                if failed_at_s is None:
                    log.warning("the cluster's head cannot be asked whether this node is to go", error=str(error))
                failed_at_s = failed_at_s or time.monotonic()
            else:
                failed_at_s = None
            await asyncio.sleep(NODE_PERIOD_S)

    def _note(self, reason: Reason) -> None:
        if self._reason == reason or self._reason == "engine":
            return
        log.warning("this replica has to go", reason=reason)
        self._reason = reason
        self._begun.set()


def _find_sign() -> Callable[[], bool]:
    serve_replica = find_serve_replica()
    if serve_replica is None:
        raise RuntimeError("this is no replica of Ray Serve")
    return lambda: is_told_to_stop(serve_replica)
