"""A field of a request that is not allowed."""

from __future__ import annotations


class RefusedField(ValueError):
    """The message says what is allowed; `param` is the path of the field in the JSON."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param
