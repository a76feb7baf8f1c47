"""When files expire: https://platform.openai.com/docs/api-reference/files/create#files_create-expires_after."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SHORTEST_S = 3_600
LONGEST_S = 2_592_000


class ExpiresAfter(BaseModel):
    """How long a file is kept: `seconds` (an hour to 30 days) from its creation on."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_S, le=LONGEST_S)
