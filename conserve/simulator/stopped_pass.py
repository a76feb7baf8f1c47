"""Passes that were stopped between two layers, and are to go on there."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from conserve.policy.latency import IterationShape
from conserve.policy.pass_stop import MOST_KEPT_S
from conserve.simulator.engine_state import EngineState
from conserve.simulator.request import SimRequest
from conserve.simulator.step import Chunk, Step


@dataclass
class _Kept:
    chunks: list[Chunk]
    decodes: int
    decode_tick: int
    share: float
    stopped_s: float


class StoppedPasses:
    """The stopped pass of one replica, of which there is one at most.

    Args:
        state: Of the engine.

    Attributes:
        in_a_row: Stopped passes of which nothing was kept, since one came to its end.
    """

    def __init__(self, state: EngineState) -> None:
        self.in_a_row = 0
        self._state = state
        self._kept: _Kept | None = None

    @property
    def is_kept(self) -> bool:
        """Whether there is one."""
        return self._kept is not None

    def list_held(self) -> Collection[SimRequest]:
        """Prompts that must stay as they are for it to go on."""
        return [chunk.request for chunk in self._kept.chunks] if self._kept is not None else ()

    def keep(self, step: Step, now_s: float, share: float, *, can_resume: bool) -> None:
        """The last iteration of a step was stopped with this share of its layers computed."""
        tokens = sum(chunk.tokens for chunk in step.chunks) + step.offline_decodes
        if not can_resume:
            self._state.metrics.recomputed_tokens += tokens * share
            self.in_a_row += 1
            return
        self._kept = _Kept([*step.chunks], step.offline_decodes, self._state.offline.tick, share, now_s)

    def note_done(self) -> None:
        """A pass has come to its end."""
        self.in_a_row = 0

    def drop_aged(self, now_s: float) -> None:
        """Gives a pass up that was stopped long ago."""
        if self._kept is not None and now_s - self._kept.stopped_s > MOST_KEPT_S:
            self._give_up()

    def drop_request(self, request: SimRequest) -> float:
        """A request of it is preempted. Returns the tokens that were computed of it in vain."""
        if self._kept is None:
            return 0.0
        lost = self.count_kept_tokens(request)
        self._kept.chunks = [chunk for chunk in self._kept.chunks if chunk.request is not request]
        if not self._kept.chunks:
            self._kept = None
        return lost

    def count_kept_tokens(self, request: SimRequest) -> int:
        """What is computed of a request in it, in tokens: layers count by their share."""
        if self._kept is None:
            return 0
        return round(sum(chunk.tokens for chunk in self._kept.chunks if chunk.request is request) * self._kept.share)

    def resume(self, now_s: float, until_s: float = math.inf) -> Step | None:
        """The rest of it as a step, as much as there is time for; None if there is none."""
        kept = self._kept
        if kept is None:
            return None
        state = self._state
        shape = IterationShape()
        for request, tokens in kept.chunks:
            shape = shape.add_prefill(tokens, request.computed)
        # Those who have decoded in the meantime are not part of it any more.
        decodes = kept.decodes if state.offline.tick == kept.decode_tick and math.isinf(until_s) else 0
        decodes = min(decodes, state.offline.size)
        if decodes:
            shape = shape.add_decodes(decodes, state.offline.context)
        self._kept = None
        if not shape.tokens:
            return None
        state.metrics.resumed_passes += 1
        step = Step(
            shape,
            state.time_ms(shape) * (1.0 + state.costs.safepoint_share),
            chunks=kept.chunks,
            offline_decodes=decodes,
            predicted_ms=state.model.predict_ms(shape),
            is_stoppable=True,
            done_share=kept.share,
            lead_ms=state.costs.resume_ms,
        )
        if decodes < state.offline.size and decodes:
            step.held = sorted(state.offline, key=lambda request: request.number)[decodes:]
        self.cut(step, now_s, until_s)
        return step

    def cut(self, step: Step, now_s: float, until_s: float) -> None:
        """Ends a step before the layer that would go on beyond a time; one layer is computed in any case."""
        if math.isinf(until_s):
            return
        layers = self._state.costs.layers
        layer_s = step.first_ms / 1e3 / layers
        first = round(step.done_share * layers)
        fits = max(1, int((until_s - now_s - step.lead_ms / 1e3) / layer_s))
        if first + fits < layers:
            step.end_share = (first + fits) / layers

    def _give_up(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            tokens = sum(chunk.tokens for chunk in kept.chunks) + kept.decodes
            self._state.metrics.recomputed_tokens += tokens * kept.share
            self.in_a_row += 1
