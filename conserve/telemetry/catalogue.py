"""All metrics of ConServe, in one place."""

from __future__ import annotations

from typing import Final

from conserve.telemetry.harvest_metrics import HARVEST_METRICS
from conserve.telemetry.job_metrics import JOB_METRICS
from conserve.telemetry.metric import Metric
from conserve.telemetry.online_metrics import ONLINE_METRICS

SECTIONS: Final[dict[str, tuple[Metric, ...]]] = {
    "Online requests": ONLINE_METRICS,
    "Harvesting, preemption, checkpoints": HARVEST_METRICS,
    "Batches and the queue": JOB_METRICS,
}
"""As `docs/metrics.md` has them."""

CATALOGUE: Final[dict[str, Metric]] = {metric.name: metric for metrics in SECTIONS.values() for metric in metrics}
"""By name."""
