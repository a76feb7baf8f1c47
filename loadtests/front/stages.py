"""Where a request's time goes on its way: requests that end at each stage, timed from the client."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from loadtests.front.calls import Calls
from loadtests.front.cost import BARE

PATHS: Final = {
    "proxy": "/-/healthz",
    "ingress": "/v1/models",
    "replica": "/health",
}
"""Stage -> a request that is answered there, and passes all stages before it."""
HEALTH_PAUSE_S: Final = 0.6
"""The front asks the replicas no more often than twice a second."""
WARM_UP: Final = 2


def measure_stages(application: Calls, bare: Calls, turns: int) -> dict[str, float]:
    """Median time in ms of a request that ends at each stage of the application, and at the bare server's front.

    Each turn asks all of them, so that whatever else the machine does hits all alike.

    Raises:
        CallError: one was not answered.
    """
    found: dict[str, list[float]] = {name: [] for name in (*PATHS, BARE)}
    for turn in range(-WARM_UP, turns):
        time.sleep(HEALTH_PAUSE_S)
        for name, path in (*PATHS.items(), (BARE, "/health")):
            began_s = time.perf_counter()
            (bare if name == BARE else application).get(path)
            if turn >= 0:
                found[name].append((time.perf_counter() - began_s) * 1e3)
    return {name: float(np.median(times_ms)) for name, times_ms in found.items()}
