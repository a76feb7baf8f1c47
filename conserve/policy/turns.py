"""How a replica works off its allotment: so many requests of each batch in their order, then from the beginning.

A replica that is through before it hears anew thus goes on in the same proportions.
"""

from __future__ import annotations

from collections.abc import Sequence

from conserve.policy.allotment import JobShare


class ShareTurns:
    """Whose turn it is.

    Args:
        shares: Batches with the most requests of a turn, in their order; a batch may be in it more than once.
    """

    def __init__(self, shares: Sequence[JobShare]) -> None:
        self._shares = [share for share in shares if share.most > 0]
        self._index = 0
        self._taken = 0

    @property
    def current(self) -> JobShare | None:
        """The batch whose turn it is and how many of its requests are left of it; None: there is nothing to take."""
        if not self._shares:
            return None
        share = self._shares[self._index]
        return JobShare(share.batch_id, share.most - self._taken)

    def take(self, batch_id: str, count: int) -> None:
        """So many requests were taken of a batch; ignored if it is another's turn by now."""
        if not self._shares or self._shares[self._index].batch_id != batch_id:
            return
        self._taken += count
        if self._taken >= self._shares[self._index].most:
            self._index = (self._index + 1) % len(self._shares)
            self._taken = 0

    def drop(self, batch_id: str) -> None:
        """Passes a batch over that has nothing to take."""
        before = sum(share.batch_id != batch_id for share in self._shares[: self._index])
        is_current = bool(self._shares) and self._shares[self._index].batch_id == batch_id
        self._shares = [share for share in self._shares if share.batch_id != batch_id]
        self._index = before % len(self._shares) if self._shares else 0
        if is_current:
            self._taken = 0
