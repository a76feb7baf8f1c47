"""How measurements are taken."""

from __future__ import annotations

import pytest

from conserve.telemetry.bounded_label import OTHER, BoundedLabel
from conserve.telemetry.harvest_metrics import ITERATIONS, STOP_RESPONSE, STOPS
from conserve.telemetry.job_metrics import BATCHES
from conserve.telemetry.memory_recorder import MemoryRecorder
from conserve.telemetry.metric import Kind, Metric, Totals


def test_totals_report_what_was_added_since_the_last_time() -> None:
    recorder = MemoryRecorder()
    totals = Totals(recorder)
    for total in (3.0, 3.0, 10.0):
        totals.report(STOPS, total)
    totals.report(ITERATIONS, 4.0, "mixed")
    totals.report(ITERATIONS, 1.0, "offline")
    assert recorder.value(STOPS) == 10
    assert recorder.value(ITERATIONS, "mixed") == 4
    assert recorder.value(ITERATIONS, "offline") == 1


def test_totals_that_begin_again_are_added() -> None:
    recorder = MemoryRecorder()
    totals = Totals(recorder)
    for total in (5.0, 2.0, 3.0):
        totals.report(STOPS, total)
    assert recorder.value(STOPS) == 8


def test_a_histogram_that_is_counted_elsewhere_gets_the_new_values() -> None:
    recorder = MemoryRecorder()
    totals = Totals(recorder)
    totals.report_buckets(STOP_RESPONSE, {0.001: 2.0, 0.005: 0.0})
    totals.report_buckets(STOP_RESPONSE, {0.001: 2.0, 0.005: 1.0})
    assert recorder.observations(STOP_RESPONSE) == [0.001, 0.001, 0.005]


def test_a_bounded_label_lets_known_and_first_values_through() -> None:
    label = BoundedLabel(3, ("a", "b"))
    assert [label.of(value) for value in ("c", "d", "a", "c", "e", "b")] == ["c", OTHER, "a", "c", OTHER, "b"]


def test_more_known_values_than_there_is_room_for_are_other() -> None:
    label = BoundedLabel(2, ("a", "b", "c"))
    assert [label.of(value) for value in ("a", "b", "c")] == ["a", "b", OTHER]


def test_the_memory_recorder_refuses_what_the_catalogue_does_not_have() -> None:
    recorder = MemoryRecorder()
    with pytest.raises(ValueError, match="catalogue"):
        recorder.add(Metric("conserve_stops_total", Kind.COUNTER, "passes", "Not the one."), 1.0)
    with pytest.raises(ValueError, match="not a gauge"):
        recorder.set(STOPS, 1.0)
    with pytest.raises(ValueError, match="1 labels"):
        recorder.set(BATCHES, 1.0)
    with pytest.raises(ValueError, match="down"):
        recorder.add(STOPS, -1.0)
