"""All dashboards, and which of their panels Ray's dashboard shows."""

from __future__ import annotations

from typing import Final

from conserve.telemetry.dashboards.batch_board import BATCHES
from conserve.telemetry.dashboards.overview_board import OVERVIEW
from conserve.telemetry.dashboards.replica_board import REPLICAS

BOARDS: Final = (OVERVIEW, REPLICAS, BATCHES)
SERVE_PANELS: Final = (7, 8, 15, 20, 21, 22, 23, 24, 25)
"""Numbers of the panels that the Serve page of Ray's dashboard shows of `RAY_GRAFANA_SERVE_DASHBOARD_UID`."""
DEPLOYMENT_PANELS: Final = (2, 3, 5)
"""Those that its pages of a deployment and of a replica show of `RAY_GRAFANA_SERVE_DEPLOYMENT_DASHBOARD_UID`."""
