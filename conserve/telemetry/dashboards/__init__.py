"""Grafana dashboards as code; `python -m conserve.telemetry.dashboards` writes them to `cluster/grafana`."""
