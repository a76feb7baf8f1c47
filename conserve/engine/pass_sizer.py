"""How large an iteration may be, in tokens and in time."""

from __future__ import annotations

import math

from conserve.engine.deadlines import Deadlines
from conserve.engine.live_settings import LiveSettings
from conserve.engine.online_demand import OnlineDemand
from conserve.engine.pass_control import PassControl
from conserve.engine.step_meter import StepMeter
from conserve.policy.deadline_floor import FloorBudget
from conserve.policy.latency import IterationShape, LatencyModel


class PassSizer:
    """Sizes of iterations with offline work in them.

    Args:
        settings: What the operator wants.
        meter: What iterations of each size have taken.
        control: Stops passes, if they can be stopped.
        layers: Of the model.
    """

    def __init__(self, settings: LiveSettings, meter: StepMeter, control: PassControl | None, layers: int) -> None:
        self._settings = settings
        self._meter = meter
        self._control = control
        self._layers = layers
        self._floor = FloorBudget()

    @property
    def can_stop(self) -> bool:
        """Whether the next pass may be stopped for online requests."""
        return self._control is not None and self._control.may_stop and not self._settings.knobs.safepoints_off

    @property
    def is_paused(self) -> bool:
        """Whether no offline request runs beside online ones."""
        knobs = self._settings.knobs
        return bool(knobs.offline_paused) and not knobs.offline_floor

    def limit_ms(self, demand: OnlineDemand, deadlines: Deadlines) -> float:
        """The longest predicted time of the next iteration; `inf` for any."""
        if demand.is_present:
            share = self._settings.knobs.offline_floor
            online_ms = deadlines.model.predict_ms(demand.shape) if share > 0 else 0.0
            return max(deadlines.limit_ms(demand), self._floor.limit_ms(online_ms, share))
        if self._settings.knobs.full_passes:
            return math.inf
        return deadlines.limit_pass_ms(self._layers) if self.can_stop else deadlines.limit_ms(demand)

    def charge(self, model: LatencyModel, shape: IterationShape) -> None:
        """An iteration was scheduled: its offline part is taken off what the floor has granted."""
        if self._floor.is_open:
            self._floor.charge(model.predict_ms(shape))

    def size_pass(self, deadlines: Deadlines) -> int:
        """Tokens of an iteration without online requests, at most."""
        knobs, full_batch = self._settings.knobs, self._settings.full_batch
        tokens = min(full_batch, int(knobs.offline_pass_tokens) or full_batch)
        if knobs.full_passes or knobs.offline_pass_tokens:
            return tokens
        tokens = self._meter.rates.best_tokens(tokens)
        if self._control is None or not self.can_stop or self._control.can_resume:
            return tokens
        return min(tokens, deadlines.choose_pass_tokens(tokens))

    def size_mixed(self, demand: OnlineDemand) -> int:
        """Tokens of an iteration with online requests: with offline ones, no more than the most efficient pass has."""
        full_batch = self._settings.full_batch
        if self.is_paused:
            return demand.tokens
        if self._settings.knobs.token_budget_off:
            return full_batch
        return max(demand.tokens, self._meter.rates.best_tokens(full_batch))
