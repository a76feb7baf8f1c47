"""Settings of how many replicas there are."""

from __future__ import annotations

from pydantic import Field

from conserve.config.section import Section as _Section

MOST_REPLICAS = 1024


class AutoscalingSettings(_Section):
    """More replicas than `replicas` while online load asks for them. Offline work asks for none."""

    max_replicas: int | None = Field(
        None, ge=1, le=MOST_REPLICAS, description="The most there may be; by default there are always `replicas`."
    )
    target_online_requests: float = Field(
        4.0,
        gt=0,
        le=4096,
        description="Online requests that each replica should have on average, waiting ones among them. Best no more "
        "than `harvest.open_at_online_requests`, so that replicas kept for peaks are harvested.",
    )
    upscale_delay_s: float = Field(10.0, ge=0, le=86_400, description="More replicas once asked for so long.")
    downscale_delay_s: float = Field(300.0, ge=0, le=86_400, description="Fewer replicas once possible for so long.")
    look_back_s: float = Field(
        30.0, gt=10, le=3_600, description="Online requests are counted as an average over so long."
    )


class SpotSettings(_Section):
    """Replicas for offline work alone, on nodes that may vanish. No online request is sent to them."""

    max_replicas: int = Field(
        0, ge=0, le=MOST_REPLICAS, description="As many as there are places on such nodes, at most so many; 0: none."
    )
    resource: str = Field(
        "spot",
        pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$",
        description="Ray's name for those places: `ray start --resources '{\"spot\": 1}'` on a node that can hold one.",
    )
