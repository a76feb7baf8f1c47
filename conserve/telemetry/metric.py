"""What a metric is, and who takes measurements. Nothing here knows how they get to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

EXPORT_PREFIX: Final = "ray_"
"""Ray exports a metric `x` as `ray_x`, so in Prometheus all names below begin with it."""


class Kind(StrEnum):
    """How a metric moves."""

    COUNTER = "counter"  # Only goes up; begins again at 0 with its process.
    GAUGE = "gauge"  # What is the case now.
    HISTOGRAM = "histogram"  # How many values there were up to each of some bounds.


@dataclass(frozen=True, eq=False)
class Label:
    """What tells the series of a metric apart.

    Attributes:
        name: As Prometheus has it.
        meaning: What its values are.
        most: So many different values one process reports at most.
    """

    name: str
    meaning: str
    most: int


@dataclass(frozen=True, eq=False)
class Metric:
    """The definition of a metric.

    Attributes:
        name: Without Ray's prefix, with the unit, as https://prometheus.io/docs/practices/naming/ asks for.
        kind: How it moves.
        unit: Of its values.
        meaning: One sentence or two.
        labels: In the order in which a `Recorder` takes their values.
        buckets: Upper bounds, of a histogram.
    """

    name: str
    kind: Kind
    unit: str
    meaning: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exported_name(self) -> str:
        """Its name in Prometheus; those of a histogram's series have `_bucket`, `_sum` and `_count` behind it."""
        return EXPORT_PREFIX + self.name


class Recorder(Protocol):
    """Takes measurements. May be called from one thread only, and costs microseconds.

    `labels` are the values of the metric's labels, in their order.
    """

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """A counter goes up by `amount`. With 0 it is there, as it should be before a rare event is counted."""

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """A gauge stands at `value`. It has to be said again every few seconds; what is not is forgotten."""

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """A histogram has seen `value`."""


class NoRecorder:
    """A `Recorder` for where nobody listens."""

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Does nothing."""

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Does nothing."""

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Does nothing."""


NO_RECORDER: Final[Recorder] = NoRecorder()


class Totals:
    """Reports counters that are counted elsewhere, as totals that only go up, or begin again at 0.

    What is counted on a hot path stays a plain number there; this is told of it once in a while.

    Args:
        recorder: Gets what was added since.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._known: dict[tuple[Metric, tuple[str, ...]], float] = {}

    def report(self, metric: Metric, total: float, *labels: str) -> None:
        """The total is this now. The first report counts from 0."""
        key = (metric, labels)
        before = self._known.get(key)
        self._known[key] = total
        added = total - before if before is not None and total >= before else total
        if added > 0 or before is None:
            self._recorder.add(metric, added, *labels)

    def report_buckets(self, metric: Metric, totals: Mapping[float, float], *labels: str) -> None:
        """A histogram that is counted elsewhere: how many values there were in all, by the bucket that they are in.

        Args:
            metric: The histogram.
            totals: By a value that stands for those in the bucket.
            labels: As elsewhere.
        """
        for value, total in totals.items():
            key = (metric, (*labels, str(value)))
            before = self._known.get(key, 0.0)
            self._known[key] = total
            for _ in range(round(total - before if total >= before else total)):
                self._recorder.observe(metric, value, *labels)
