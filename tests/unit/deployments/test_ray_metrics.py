"""What is handed to Ray's metrics; that they come out again, the test of a whole application shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from ray.util import metrics as ray_metrics

from conserve.telemetry.catalogue import CATALOGUE
from conserve.telemetry.harvest_metrics import OFFLINE_WINDOW, PREEMPTIONS, STOP_RESPONSE
from conserve.telemetry.metric import Kind
from deployments.ray_metrics import PLACE_LABELS, RayRecorder

PLACE = dict.fromkeys(PLACE_LABELS, "")


@pytest.fixture
def recorded() -> Iterator[list[tuple[str, float, dict[str, str]]]]:
    found: list[tuple[str, float, dict[str, str]]] = []

    def record(self: ray_metrics.Metric, value: float, tags: Any = None) -> None:
        self._validate_tags(self._get_final_tags(tags))
        found.append((self.info["name"], value, tags))

    with mock.patch.object(ray_metrics.Metric, "_record", record):
        yield found


def test_each_kind_gets_there(recorded: list[tuple[str, float, dict[str, str]]]) -> None:
    recorder = RayRecorder()
    recorder.add(PREEMPTIONS, 2, "offline")
    recorder.set(OFFLINE_WINDOW, 8)
    recorder.observe(STOP_RESPONSE, 0.01)
    assert recorded == [
        ("conserve_preemptions", 2, PLACE | {"work": "offline"}),
        ("conserve_offline_window_requests", 8, PLACE),
        ("conserve_stop_response_seconds", 0.01, PLACE),
    ]


def test_a_counter_begins_at_0_once(recorded: list[tuple[str, float, dict[str, str]]]) -> None:
    recorder = RayRecorder()
    for amount in (0, 0, 1, 0):
        recorder.add(PREEMPTIONS, amount, "online")
    assert [value for _, value, _ in recorded] == [0, 1]


def test_ray_takes_every_metric_of_the_catalogue(recorded: list[tuple[str, float, dict[str, str]]]) -> None:
    recorder = RayRecorder()
    methods = {Kind.COUNTER: recorder.add, Kind.GAUGE: recorder.set, Kind.HISTOGRAM: recorder.observe}
    for metric in CATALOGUE.values():
        methods[metric.kind](metric, 1.0, *("x" for _ in metric.labels))
    assert len(recorded) == len(CATALOGUE)
