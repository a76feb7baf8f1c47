"""Whether an engine that has online requests has stopped to work on them."""

from __future__ import annotations

from typing import Final

LONGEST_GAP_S: Final = 5.0
"""Between two looks counts at most so long: if the one who looks was stopped, that says nothing of the engine."""


class StallWatch:
    """Looks on while an engine works. A process that hangs, or a device that never answers, ends no iteration.

    vLLM 0.32 notices a worker that does not answer (`VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS`), but no engine core.

    Args:
        limit_s: So long an engine with online requests may go without the end of an iteration.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._iterations = -1.0
        self._looked_s: float | None = None
        self._stalled_s = 0.0

    @property
    def is_stalled(self) -> bool:
        """Whether it has gone on for too long. It does not become false again: such an engine is replaced."""
        return self._stalled_s > self._limit_s

    def look(self, iterations: float, has_online: bool, now_s: float) -> None:
        """Notes what is seen now, once in a while.

        Args:
            iterations: That have ended since the engine has started.
            has_online: Whether online requests wait for it or run.
            now_s: Seconds, monotonic.
        """
        if self.is_stalled:
            return
        gap_s = 0.0 if self._looked_s is None else min(now_s - self._looked_s, LONGEST_GAP_S)
        goes_on = iterations != self._iterations or not has_online
        self._stalled_s = 0.0 if goes_on else self._stalled_s + gap_s
        self._iterations, self._looked_s = iterations, now_s
