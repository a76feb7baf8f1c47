"""From the settings of `routing` to the options of a Serve deployment."""

from __future__ import annotations

import os
from typing import Any, Final

from conserve.config import RoutingSettings

ROUTER: Final = "deployments.router.TtftRequestRouter"
ROUTER_VARIABLE: Final = "CONSERVE_TEST_ROUTER"
"""Names another class, as the load test of the routing does (`deployments.testing.compared_router`)."""
STALE_PERIODS: Final = 4
LEAST_STALE_S: Final = 5.0
"""A replica that has not reported for so many periods, and so long, counts as silent. Reports come through Serve's
controller, a busy process, and are worth something for seconds: what was sent since is counted besides."""


def find_routing(routing: RoutingSettings) -> dict[str, Any]:
    """Options of a deployment whose replicas record a `RoutingReport`; none where Serve routes as it always does."""
    if routing.policy == "serve":
        return {}
    period_s = routing.report_period_ms / 1e3
    stale_after_s = max(LEAST_STALE_S, STALE_PERIODS * period_s)
    return {
        "request_router_config": {
            "request_router_class": os.environ.get(ROUTER_VARIABLE, ROUTER),
            "request_router_kwargs": {"stale_after_s": stale_after_s},
            "request_routing_stats_period_s": period_s,
            "request_routing_stats_timeout_s": stale_after_s,
        }
    }
