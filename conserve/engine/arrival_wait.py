"""How long an online request waits for what the engine computes when it comes."""

from __future__ import annotations

import math

from conserve.engine.iteration_log import Iteration
from conserve.policy.outlook import WaitRecord
from conserve.policy.pass_stop import LAYERS_TO_STOP


class ArrivalWait:
    """The mean over the latest seconds.

    Args:
        layers: Of the model.
    """

    def __init__(self, layers: int) -> None:
        self._stop_share = LAYERS_TO_STOP / layers
        self._record = WaitRecord()

    def observe(self, iteration: Iteration, let_go_ms: float) -> float:
        """An iteration has ended.

        Args:
            iteration: Which.
            let_go_ms: One without online requests is stopped if more than so much is left; `inf`: none is.

        Returns:
            Milliseconds, as of now.
        """
        is_stoppable = not (iteration.online_prefill_tokens or iteration.online_decodes) and not math.isinf(let_go_ms)
        length_ms = (iteration.end_s - iteration.start_s) * 1e3
        stop_ms = self._stop_share * length_ms if is_stoppable else math.inf
        return self._record.observe(iteration.start_s, iteration.end_s, stop_ms, let_go_ms)
