"""What the application says about itself. It says more; here is what people are shown."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ReplicaStatus(_Part):
    """A replica. Counts are requests in its engine, of which `window` may be offline ones.

    It is `alone` while no allotment reaches it. The `*_tokens` and `*_s` are totals since it has started;
    `slo_attainment` is the share of the latest online tokens that came in time, None without any.
    """

    replica_id: str
    model: str
    state: str
    window: int
    alone: bool = False
    online_running: int = 0
    online_waiting: int = 0
    offline_running: int = 0
    kv_usage: float = 0.0
    offline_prompt_tokens: int = 0
    offline_output_tokens: int = 0
    online_busy_s: float = 0.0
    offline_busy_s: float = 0.0
    headroom_tokens_per_s: float | None = None
    slo_attainment: float | None = None


class BatchStatusLine(_Part):
    """A batch that has not ended. Counts are requests; times are Unix seconds."""

    id: str
    status: str
    total: int
    completed: int
    failed: int
    ready: int = 0
    leased: int = 0
    created_at: int = 0
    expires_at: int | None = None
    priority: int = 0
    paused: bool = False


class ClusterStatus(_Part):
    """Replicas, and the caller's batches that have not ended.

    `flex_waiting` are flex requests of everybody. `controller` is the cluster whose controller is at work; with
    `controller_elsewhere` that is not this one.
    """

    replicas: list[ReplicaStatus]
    batches: list[BatchStatusLine]
    flex_waiting: int = 0
    controller: str | None = None
    controller_elsewhere: bool = False
