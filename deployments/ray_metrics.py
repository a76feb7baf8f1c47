"""Measurements go to Ray's metrics, and with them wherever those go: its agents' Prometheus endpoints."""

from __future__ import annotations

from typing import Any, Final

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.util import metrics as ray_metrics

from conserve.telemetry.metric import Kind, Metric
from deployments.serve_compat import count_nothing

PLACE_LABELS: Final = ("application", "deployment", "replica")
"""Added to all metrics, as Serve's own have them."""


class RayRecorder:
    """A `Recorder` that reports to the Ray node agent, which is asked by Prometheus.

    Ray makes the metric when it is first used. Its agent keeps all buckets of histograms, but puts their sums together
    from the middles of buckets, so averages are rough.
    """

    def __init__(self) -> None:
        self._place = _find_place()
        self._metrics: dict[Metric, Any] = {}
        self._begun: set[tuple[Metric, tuple[str, ...]]] = set()
        self._tags: dict[tuple[str, ...], dict[Metric, dict[str, str]]] = {}

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """As `Recorder.add`."""
        counter, tags = self._find(metric), self._find_tags(metric, labels)
        if amount > 0:
            counter.inc(amount, tags)
        elif (metric, labels) not in self._begun:
            count_nothing(counter, tags)
        self._begun.add((metric, labels))

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """As `Recorder.set`."""
        self._find(metric).set(value, self._find_tags(metric, labels))

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """As `Recorder.observe`."""
        self._find(metric).observe(value, self._find_tags(metric, labels))

    def _find(self, metric: Metric) -> Any:
        found = self._metrics.get(metric)
        if found is None:
            found = self._metrics[metric] = _make(metric)
        return found

    def _find_tags(self, metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
        by_metric = self._tags.setdefault(labels, {})
        tags = by_metric.get(metric)
        if tags is None:
            names = (label.name for label in metric.labels)
            tags = by_metric[metric] = {**self._place, **dict(zip(names, labels, strict=True))}
        return tags


def _make(metric: Metric) -> Any:
    keys = (*PLACE_LABELS, *(label.name for label in metric.labels))
    match metric.kind:
        case Kind.COUNTER:
            # Ray puts `_total` behind it.
            return ray_metrics.Counter(metric.name.removesuffix("_total"), metric.meaning, keys)
        case Kind.GAUGE:
            return ray_metrics.Gauge(metric.name, metric.meaning, keys)
        case Kind.HISTOGRAM:
            return ray_metrics.Histogram(metric.name, metric.meaning, list(metric.buckets), keys)


def _find_place() -> dict[str, str]:
    try:
        context = serve.get_replica_context()
    except RayServeException:  # Not in a replica.
        return dict.fromkeys(PLACE_LABELS, "")
    names = (context.app_name, context.deployment, context.replica_tag)
    return dict(zip(PLACE_LABELS, names, strict=True))
