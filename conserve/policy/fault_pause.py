"""How long nothing is begun after faults: of the batch that they came from, or of all where the engine is the cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_SUSPECTED: Final = 2
"""So many batches that fail one after the other, none of them successful in between, speak against the engine."""


@dataclass
class _Pause:
    next_s: float
    until_s: float = float("-inf")

    def begin(self, now_s: float, longest_s: float) -> None:
        # Requests that fail together, or while others of them are still running out, are one incident.
        if now_s < self.until_s:
            return
        self.until_s = now_s + self.next_s
        self.next_s = min(2 * self.next_s, longest_s)


class FaultPauses:
    """The pauses of one replica. Times are seconds of any clock that does not go back.

    Args:
        first_s: The first pause; each further one is twice as long, until something succeeds.
        longest_s: The longest one.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._of_all = _Pause(first_s)
        self._of_batches: dict[str, _Pause] = {}
        self._failed: set[str] = set()

    def fail(self, batch_id: str, now_s: float, *, engine_ended: bool = False) -> None:
        """A request of a batch has failed.

        Args:
            batch_id: The batch.
            now_s: Now.
            engine_ended: Whether that is because there is no engine any more.
        """
        self._forget(now_s)
        self._of_batches.setdefault(batch_id, _Pause(self._first_s)).begin(now_s, self._longest_s)
        self._failed.add(batch_id)
        if engine_ended or len(self._failed) >= _SUSPECTED:
            self._of_all.begin(now_s, self._longest_s)

    def succeed(self, batch_id: str) -> None:
        """A request of a batch has been answered: the engine works, and so does the batch."""
        self._of_batches.pop(batch_id, None)
        self._failed.clear()
        self._of_all.next_s = self._first_s

    def stops_all(self, now_s: float) -> bool:
        """Whether nothing may begin."""
        return now_s < self._of_all.until_s

    def stops(self, batch_id: str, now_s: float) -> bool:
        """Whether nothing of a batch may begin."""
        return self.stops_all(now_s) or (batch_id in self._of_batches and now_s < self._of_batches[batch_id].until_s)

    def list_stopped(self, now_s: float) -> list[str]:
        """Batches that are stopped for their own faults."""
        return sorted(batch_id for batch_id, pause in self._of_batches.items() if now_s < pause.until_s)

    def _forget(self, now_s: float) -> None:
        """Batches whose pause has been over for long."""
        old = [name for name, pause in self._of_batches.items() if now_s - pause.until_s > 2 * self._longest_s]
        for batch_id in old:
            del self._of_batches[batch_id]
            self._failed.discard(batch_id)
