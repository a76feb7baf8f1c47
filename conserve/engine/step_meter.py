"""Measures iterations from their schedule to their outputs, and teaches the latency model."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from conserve.policy.latency import IterationShape, LatencyModel


class _InFlight(NamedTuple):
    shape: IterationShape
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

    def begin(self, shape: IterationShape, scheduled_s: float, limit_ms: float) -> None:
        """An iteration was scheduled; `limit_ms` is the longest measured time that its objectives allow."""
        self._in_flight.append(_InFlight(shape, scheduled_s, self._model.predict_ms(shape), limit_ms))

    def end(self, now_s: float) -> bool:
        """The outputs of the oldest iteration in flight were processed. Returns whether it kept within its limit."""
        step = self._in_flight.popleft()
        measured_ms = (now_s - max(step.scheduled_s, self._ended_s)) * 1e3
        self._ended_s = now_s
        self._model.observe(step.shape, measured_ms)
        return measured_ms <= step.limit_ms

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
