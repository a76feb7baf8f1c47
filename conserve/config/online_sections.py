"""Settings of what is taken in of online requests."""

from __future__ import annotations

from pydantic import Field

from conserve.config.section import Section as _Section


class OverloadSettings(_Section):
    """Online requests beyond capacity are refused at once, with 429 and `Retry-After`, by the replica."""

    refuse: bool = Field(
        True,
        description="Whether those are refused that would come late, or make others late, by what the replica predicts "
        "and the objectives of `slo`.",
    )
    ttft_share: float = Field(
        0.9, gt=0, le=100, description="The predicted time to the first token may be this part of the objective."
    )
    max_waiting_requests: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Online requests that may wait for their first token at one replica, of a class and those before "
        "it; in any case, whatever `refuse` is.",
    )
