"""Measures iterations from their schedule to their outputs, and teaches the latency model."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from conserve.engine.iteration_log import Iteration
from conserve.engine.step_plan import StopNote
from conserve.engine.work_tally import Work
from conserve.policy.latency import LatencyModel
from conserve.policy.pass_rates import PassRates


class _InFlight(NamedTuple):
    work: Work
    scheduled_s: float
    predicted_ms: float
    limit_ms: float
    first_layer: int
    spent_ms: float
    is_void: bool = False

    @property
    def has_tokens(self) -> bool:
        """Whether online requests get tokens with it, unless it is void."""
        return self.work.has_online and not self.is_void


class StepMeter:
    """Keeps the iterations in flight: one with synchronous scheduling, several with asynchronous scheduling.

    Iterations run one after the other, so the time of one begins when it was scheduled or when the one before ended,
    whichever is later. It ends when its outputs are processed: that is what lies between two tokens.
    """

    def __init__(self, model: LatencyModel) -> None:
        self._model = model
        self.rates = PassRates()
        """What iterations of each size compute."""
        self._in_flight: deque[_InFlight] = deque()
        self._ended_s = self._tokens_s = float("-inf")
        self.spent_ms = 0.0
        """What the iteration that ended last has taken, with what it has continued."""

    def begin(
        self,
        work: Work,
        scheduled_s: float,
        limit_ms: float,
        first_layer: int = 0,
        layers_share: float = 1.0,
        spent_ms: float = 0.0,
        until_s: float = math.inf,
    ) -> float:
        """An iteration was scheduled.

        Args:
            work: What it computes.
            scheduled_s: Now.
            limit_ms: The longest measured time that its objectives allow; 0 for any.
            first_layer: It computes the layers from this one on.
            layers_share: Share of all layers that these are.
            spent_ms: What the layers before have taken, of the same work; 0 if that is not known.
            until_s: It is stopped by then.

        Returns:
            When it will probably have ended, within the safety factor.
        """
        begins_s = self.free_at_s(scheduled_s)
        predicted_ms = self._model.predict_ms(work.shape) * layers_share
        predicted_ms = min(predicted_ms, max(0.0, (until_s - begins_s) * 1e3))
        self._in_flight.append(_InFlight(work, scheduled_s, predicted_ms, limit_ms, first_layer, spent_ms))
        return begins_s + predicted_ms * self._model.safety_factor() / 1e3

    def end(self, now_s: float, note: StopNote | None = None) -> Iteration:
        """The outputs of the oldest iteration in flight were processed; with a note if it was stopped."""
        step = self._in_flight.popleft()
        start_s = max(step.scheduled_s, self._ended_s)
        self._ended_s = now_s
        if note is None and step.has_tokens:
            self._tokens_s = now_s
        if note is not None and not note.is_void:
            # What is in flight behind a stopped iteration will compute nothing.
            self._in_flight = deque(each._replace(predicted_ms=0.0, is_void=True) for each in self._in_flight)
        # A part of the layers says little about all of them.
        if note is None and (not step.first_layer or step.spent_ms):
            measured_ms = step.spent_ms + (now_s - start_s) * 1e3
            self._model.observe(step.work.shape, measured_ms)
            if not step.spent_ms:
                self.rates.observe(step.work.shape, measured_ms)
        self.spent_ms = step.spent_ms + (now_s - start_s) * 1e3
        return Iteration(
            *(start_s, now_s, *step.work[1:4], step.predicted_ms, step.limit_ms),
            first_layer=step.first_layer,
            stop_layer=-1 if note is None else note.layer,
            announced_s=0.0 if note is None else note.announced_s,
            stopped_s=0.0 if note is None else note.stopped_s,
        )

    def free_at_s(self, now_s: float) -> float:
        """When an iteration scheduled now can begin: after those in flight, as far as their time is known."""
        begins_s = now_s
        previous_s = self._ended_s
        for step in self._in_flight:
            previous_s = max(step.scheduled_s, previous_s) + step.predicted_ms / 1e3
            begins_s = max(begins_s, previous_s)
        return begins_s

    def last_tokens_s(self, now_s: float) -> float:
        """When online requests got their last tokens, or get them with what is in flight."""
        tokens_s, previous_s = self._tokens_s, self._ended_s
        for step in self._in_flight:
            previous_s = max(step.scheduled_s, previous_s) + step.predicted_ms / 1e3
            if step.has_tokens:
                tokens_s = max(previous_s, now_s)
        return tokens_s
