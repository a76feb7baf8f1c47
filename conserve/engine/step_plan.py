"""What our scheduler tells the workers about a batch, and what they answer about one that did not come to its end.

Both ride on vLLM's own messages, `SchedulerOutput` and `ModelRunnerOutput`, as one attribute more: they go to every
worker and back with any executor, and a worker or scheduler that knows nothing of them is not disturbed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from conserve.policy.pass_stop import PreemptRule

_PLAN = "conserve_plan"
_STOP = "conserve_stop"


@dataclass(frozen=True)
class StepPlan:
    """About a batch.

    Attributes:
        step: Number of the batch, from 1.
        generation: Goes up with each stopped batch. What was scheduled before the stop and not computed yet is void.
        rule: When to stop the batch; `never` with an online request in it.
        interval_layers: A safepoint lies before each layer whose index is a multiple of this.
        predicted_end_s: When it is expected to end, by `time.monotonic`.
        first_token_ms: Time to the first token of a request that arrives, once the engine is free.
        until_s: It is stopped before a layer that would go on beyond this time: online requests that decode come next.
        keep: Whether to keep what was computed when it is stopped.
        resumes: The stopped batch that this one continues, all rows of it; 0 for none.
        kept: The stopped batch that may be continued later; what was kept of others is let go.
        stop_at_layer: Stops before this layer, whoever has arrived (tests); -1 for nowhere.
    """

    step: int
    generation: int
    rule: PreemptRule
    interval_layers: int = 1
    predicted_end_s: float = math.inf
    first_token_ms: float = 0.0
    until_s: float = math.inf
    keep: bool = False
    resumes: int = 0
    kept: int = 0
    stop_at_layer: int = -1

    @property
    def is_stoppable(self) -> bool:
        """Whether the batch may be stopped."""
        return self.rule != "never" or self.until_s < math.inf or self.stop_at_layer >= 0


@dataclass(frozen=True)
class StopNote:
    """About a batch that was stopped, or was void.

    Attributes:
        step: Number of the batch.
        layer: It stopped before this layer; layers below were computed, by it or by the batch that it continued.
        layers: Of the model.
        kept_bytes: Memory of what was kept so that it can be continued; 0 if it cannot.
        announced_s: When the request that it gave way to was announced, by `time.monotonic`; 0 if there is none.
        stopped_s: When it stopped.
        is_void: Whether it was void.
        failed_blocks: KV blocks that were to come back from host memory and have not: it was stopped for them.
    """

    step: int
    layer: int
    layers: int
    kept_bytes: int = 0
    announced_s: float = 0.0
    stopped_s: float = 0.0
    is_void: bool = False
    failed_blocks: tuple[int, ...] = ()


def attach_plan(batch: Any, plan: StepPlan) -> None:
    """Puts a plan on a `SchedulerOutput`."""
    setattr(batch, _PLAN, plan)


def read_plan(batch: Any) -> StepPlan | None:
    """The plan of a batch; None if it has none."""
    return getattr(batch, _PLAN, None)


def attach_stop(output: Any, note: StopNote) -> None:
    """Puts a note on a `ModelRunnerOutput`."""
    setattr(output, _STOP, note)


def read_stop(output: Any) -> StopNote | None:
    """The note of an output; None if its batch came to its end."""
    return getattr(output, _STOP, None)
