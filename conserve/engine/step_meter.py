"""Measures iterations from their schedule to their outputs, and teaches the latency model."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from conserve.engine.iteration_log import Iteration
from conserve.engine.work_tally import Work
from conserve.policy.latency import LatencyModel


class _InFlight(NamedTuple):
    work: Work
    scheduled_s: float
    predicted_ms: float
    limit_ms: float


class StepMeter:
    """Keeps the iterations in flight: one with synchronous scheduling, several with asynchronous scheduling.

    Iterations run one after the other, so the time of one begins when it was scheduled or when the one before ended,
    whichever is later. It ends when its outputs are processed: that is what lies between two tokens.
    """

    def __init__(self, model: LatencyModel) -> None:
        self._model = model
        self._in_flight: deque[_InFlight] = deque()
        self._ended_s = float("-inf")

    def begin(self, work: Work, scheduled_s: float, limit_ms: float) -> None:
        """An iteration was scheduled; `limit_ms` is the longest measured time that its objectives allow, 0 for any."""
        self._in_flight.append(_InFlight(work, scheduled_s, self._model.predict_ms(work.shape), limit_ms))

    def end(self, now_s: float) -> Iteration:
        """The outputs of the oldest iteration in flight were processed."""
        step = self._in_flight.popleft()
        start_s = max(step.scheduled_s, self._ended_s)
        self._ended_s = now_s
        self._model.observe(step.work.shape, (now_s - start_s) * 1e3)
        return Iteration(start_s, now_s, *step.work[1:], step.predicted_ms, step.limit_ms)

    def free_at_s(self, now_s: float) -> float:
        """When an iteration scheduled now can begin: after those in flight, as far as their time is known."""
        begins_s = now_s
        previous_s = self._ended_s
        for step in self._in_flight:
            previous_s = max(step.scheduled_s, previous_s) + step.predicted_ms / 1e3
            begins_s = max(begins_s, previous_s)
        return begins_s

    @property
    def ended_s(self) -> float:
        """When the last outputs were processed."""
        return self._ended_s
