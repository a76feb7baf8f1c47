"""From the settings of `routing` to the options of a Serve deployment."""

from __future__ import annotations

import os
from typing import Any, Final

from conserve.config import RoutingSettings

ROUTER: Final = "deployments.router.TtftRequestRouter"
ROUTER_VARIABLE: Final = "CONSERVE_TEST_ROUTER"
"""Names another class, as the load test of the routing does (`deployments.compared_router`)."""
STALE_PERIODS: Final = 6
"""A replica that has not reported for so many periods counts as silent. Reports come through Serve's controller, which
looks every tenth of a second and is a busy process."""


def find_routing(routing: RoutingSettings) -> dict[str, Any]:
    """Options of a deployment whose replicas record a `RoutingReport`; none where Serve routes as it always does."""
    if routing.policy == "serve":
        return {}
    period_s = routing.report_period_ms / 1e3
    return {
        "request_router_config": {
            "request_router_class": os.environ.get(ROUTER_VARIABLE, ROUTER),
            "request_router_kwargs": {"stale_after_s": STALE_PERIODS * period_s},
            "request_routing_stats_period_s": period_s,
            "request_routing_stats_timeout_s": STALE_PERIODS * period_s,
        }
    }
