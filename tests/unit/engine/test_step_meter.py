from __future__ import annotations

import pytest

from conserve.engine.iteration_log import Iteration
from conserve.engine.step_meter import StepMeter
from conserve.engine.work_tally import Work
from conserve.policy.latency import IterationShape, LatencyModel

DECODE = Work(IterationShape().add_decode(100), 0, 1, 0)


class Recorder(LatencyModel):
    """A model that predicts 50 ms and keeps what it is taught."""

    def __init__(self) -> None:
        super().__init__()
        self.measured_ms: list[float] = []

    def predict_ms(self, shape: IterationShape) -> float:
        return 50.0

    def observe(self, shape: IterationShape, measured_ms: float) -> None:
        self.measured_ms.append(measured_ms)


@pytest.fixture
def model() -> Recorder:
    return Recorder()


def test_a_lone_iteration_takes_from_its_schedule_to_its_outputs(model: Recorder) -> None:
    meter = StepMeter(model)
    meter.begin(DECODE, 10.0, 100.0)
    assert meter.end(10.04) == Iteration(10.0, 10.04, 0, 1, 0, 50.0, 100.0)
    assert model.measured_ms == pytest.approx([40])
    assert meter.spent_ms == pytest.approx(40)


def test_an_iteration_scheduled_while_one_runs_begins_when_that_one_has_ended(model: Recorder) -> None:
    meter = StepMeter(model)
    meter.begin(DECODE, 10.00, 100.0)
    meter.begin(DECODE, 10.01, 100.0)
    meter.end(10.04)
    meter.end(10.09)
    assert model.measured_ms == pytest.approx([40, 50])


def test_idle_time_counts_for_no_iteration(model: Recorder) -> None:
    meter = StepMeter(model)
    meter.begin(DECODE, 10.0, 100.0)
    meter.end(10.04)
    meter.begin(DECODE, 20.0, 100.0)
    meter.end(20.03)
    assert model.measured_ms == pytest.approx([40, 30])


def test_the_next_iteration_can_begin_when_those_in_flight_are_predicted_to_end(model: Recorder) -> None:
    meter = StepMeter(model)
    assert meter.free_at_s(10.0) == 10.0
    meter.begin(DECODE, 10.0, 100.0)
    assert meter.free_at_s(10.01) == pytest.approx(10.05)
    meter.begin(DECODE, 10.01, 100.0)
    assert meter.free_at_s(10.02) == pytest.approx(10.10)
    assert meter.free_at_s(11.0) == 11.0, "one that takes longer than predicted may end at any moment"
