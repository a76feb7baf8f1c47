"""Measurements kept in memory: for tests, and for a process without Ray."""

from __future__ import annotations

from collections import defaultdict

from conserve.telemetry.catalogue import CATALOGUE
from conserve.telemetry.metric import Kind, Metric


class MemoryRecorder:
    """A `Recorder` that can be asked, and that takes nothing that the catalogue does not have.

    Attributes:
        values: Of counters and gauges, by metric and labels.
        observed: Of histograms, all of it.
    """

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.observed: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """As `Recorder.add`."""
        key = _check(metric, Kind.COUNTER, labels)
        if amount < 0:
            raise ValueError(f"{metric.name}: a counter cannot go down, by {amount}")
        self.values[key] = self.values.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """As `Recorder.set`."""
        self.values[_check(metric, Kind.GAUGE, labels)] = value

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """As `Recorder.observe`."""
        self.observed[_check(metric, Kind.HISTOGRAM, labels)].append(value)

    def value(self, metric: Metric, *labels: str) -> float | None:
        """What a counter or a gauge stands at; None: it was never set."""
        return self.values.get((metric.name, *labels))

    def observations(self, metric: Metric, *labels: str) -> list[float]:
        """What a histogram has seen."""
        return self.observed[metric.name, *labels]


def _check(metric: Metric, kind: Kind, labels: tuple[str, ...]) -> tuple[str, ...]:
    if CATALOGUE.get(metric.name) is not metric:
        raise ValueError(f"{metric.name}: is not in the catalogue")
    if metric.kind is not kind:
        raise ValueError(f"{metric.name}: is a {metric.kind}, not a {kind}")
    if len(labels) != len(metric.labels):
        raise ValueError(f"{metric.name}: has {len(metric.labels)} labels, not {len(labels)}")
    return (metric.name, *labels)
