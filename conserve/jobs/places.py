"""Places for what is open in one process: so many in all, and so many of one tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conserve.jobs.errors import NoPlaceError


class Places:
    """Counts who is there.

    Args:
        total: How many places there are.
        each: How many a tenant may take at the moment; None: all of them.
    """

    def __init__(self, total: int, each: Callable[[str], int | None]) -> None:
        self._total = total
        self._each = each
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How many are taken."""
        return self._taken.total()

    @contextmanager
    def take(self, tenant: str) -> Iterator[None]:
        """Takes a place for the block.

        Raises:
            NoPlaceError: all are taken, or all that the tenant may take.
        """
        own = self._each(tenant)
        if own is not None and self._taken[tenant] >= own:
            raise NoPlaceError(own, is_own=True)
        if self.taken >= self._total:
            raise NoPlaceError(self._total, is_own=False)
        self._taken[tenant] += 1
        try:
            yield
        finally:
            self._taken[tenant] -= 1
