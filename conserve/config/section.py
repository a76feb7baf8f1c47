"""What all sections of the settings have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the settings: unknown names are refused, defaults are checked, too, and nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
