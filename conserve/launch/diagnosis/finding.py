"""What a check has found."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

State = Literal["fine", "warning", "problem"]


class Finding(BaseModel):
    """One thing that was looked at. With a `problem` the application does not start or serve; `mend` is what to do."""

    what: str
    state: State
    found: str
    mend: str | None = None


def fine(what: str, found: str) -> Finding:
    """It is as it should be."""
    return Finding(what=what, state="fine", found=found)


def warning(what: str, found: str, mend: str) -> Finding:
    """It works, but worse than it could, or not for long."""
    return Finding(what=what, state="warning", found=found, mend=mend)


def problem(what: str, found: str, mend: str) -> Finding:
    """The application does not start or serve like that."""
    return Finding(what=what, state="problem", found=found, mend=mend)
