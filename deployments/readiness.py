"""Whether a replica can answer, as `/health` says it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.ray_compat import DeploymentUnavailableError

TIMEOUT_S = 2.0
CACHE_S = 0.5
SILENCE_TOLERATED_S = 30.0
"""A replica that hangs is replaced by Serve's health check after so long; until then its neighbours count."""


class ReadinessProbe:
    """Asks all replicas whether they are there.

    Args:
        handles: of the replicas' deployments; each replica answers `answers()` with True.
        clock: seconds, monotonic.
    """

    def __init__(self, handles: Iterable[DeploymentHandle[Any]], clock: Callable[[], float] = time.monotonic) -> None:
        self._handles = list(handles)
        self._clock = clock
        self._asked_at_s = float("-inf")
        self._answered_at_s = float("-inf")

    async def is_ready(self) -> bool:
        """True when a replica has answered just now; asks at most twice a second."""
        now_s = self._clock()
        if now_s - self._asked_at_s >= CACHE_S:
            self._asked_at_s = now_s
            await self._ask()
        return self._clock() - self._answered_at_s < SILENCE_TOLERATED_S

    async def _ask(self) -> None:
        silent = False
        for handle in self._handles:
            # A broadcast does not wait behind online requests, unlike a call that is routed.
            asked = handle.broadcast("answers")
            try:
                answers = await asked.results_async(timeout_s=TIMEOUT_S, return_exceptions=True)
            except TimeoutError:
                silent = True  # of one replica at least; the others' answers are lost with its own
                continue
            except DeploymentUnavailableError:
                continue
            if any(answer is True for answer in answers):
                self._answered_at_s = self._clock()
                return
        if not silent:
            self._answered_at_s = float("-inf")
