"""The definitions of metrics follow Prometheus' conventions, and bound what they may cost."""

from __future__ import annotations

import re

import pytest

from conserve.config import Settings, SloSettings
from conserve.jobs.batch import BatchStatus
from conserve.policy.retry import FaultKind
from conserve.telemetry.catalogue import CATALOGUE, SECTIONS
from conserve.telemetry.job_metrics import FAULT, STATUS
from conserve.telemetry.metric import Kind, Metric
from conserve.telemetry.online_metrics import SLO_CLASS

METRICS = list(CATALOGUE.values())
UNIT_SUFFIXES = {
    "seconds": "_seconds",
    "bytes": "_bytes",
    "ratio": "_ratio",
    "tokens/s": "_tokens_per_second",
    "requests/s": "_requests_per_second",
    "tokens": "_tokens",
}
MOST_SERIES = 4_000


def test_every_name_stands_once() -> None:
    assert len(CATALOGUE) == sum(map(len, SECTIONS.values()))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"conserve_[a-z][a-z0-9]*(_[a-z0-9]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    suffix = UNIT_SUFFIXES.get(metric.unit)
    if suffix is not None:
        assert metric.name.removesuffix("_total").endswith(suffix)
    # The names of a histogram's series.
    assert not metric.name.endswith(("_sum", "_count", "_bucket"))
    assert metric.meaning.endswith(".")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_only_histograms_have_buckets_and_they_rise(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
    assert all(low < high for low, high in zip((0.0, *metric.buckets), metric.buckets, strict=False))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_labels_are_few_and_name_no_request_or_batch(metric: Metric) -> None:
    names = [label.name for label in metric.labels]
    assert len({*names}) == len(names)
    # What Ray and Serve put there themselves, and `le`.
    assert not {"application", "deployment", "replica", "le", "Component", "NodeAddress", "SessionName"} & {*names}
    assert not any(word in name for name in names for word in ("request", "batch", "_id"))
    series = max(1, len(metric.buckets) + 3)
    for label in metric.labels:
        series *= label.most
    assert series <= MOST_SERIES


def test_labels_have_room_for_all_values() -> None:
    most_classes = next(one for one in SloSettings.model_fields["classes"].metadata if hasattr(one, "max_length"))
    assert most_classes.max_length + 2 <= SLO_CLASS.most
    assert len(BatchStatus) <= STATUS.most
    assert len(FaultKind) + 1 <= FAULT.most
    assert Settings().slo.by_priority().keys() == {"default"}
