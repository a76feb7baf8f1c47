"""Values of a label that come from outside, and are kept to a number that Prometheus can bear."""

from __future__ import annotations

from typing import Final

OTHER: Final = "other"


class BoundedLabel:
    """Lets the first values through, and calls all further ones `other`.

    Args:
        most: So many values, `other` aside.
        known: Values that come first, in this order.
    """

    def __init__(self, most: int, known: tuple[str, ...] = ()) -> None:
        self._most = most
        self._values = set(known[:most])

    def of(self, value: str) -> str:
        """What stands for a value."""
        if value in self._values:
            return value
        if len(self._values) < self._most:
            self._values.add(value)
            return value
        return OTHER
