"""What `GET /conserve/v1/status` says about the replicas, and what passed between two readings of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

STATUS_PATH = "/conserve/v1/status"


class ReplicaStatus(BaseModel):
    """One replica. Counters (`..._s`, `..._tokens`) grow from the replica's start; absent fields are None."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    replica_id: str
    model: str | None = None
    state: str | None = None
    window: int | None = None
    online_running: int | None = None
    online_waiting: int | None = None
    offline_running: int | None = None
    kv_usage: float | None = None
    offline_busy_s: float | None = None
    online_busy_s: float | None = None
    offline_prompt_tokens: int | None = None
    offline_output_tokens: int | None = None
    offline_computed_tokens: int | None = None
    engine_cpu_s: float | None = None


class StatusReport(BaseModel):
    """One reading; `read_s` is the client's monotonic clock at that time."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    replicas: list[ReplicaStatus]
    read_s: float = Field(default_factory=time.monotonic)

    def total(self, name: str) -> float | None:
        """The sum of a field over the replicas; None when there are none or one of them lacks it."""
        values = [getattr(replica, name) for replica in self.replicas]
        return sum(values) if values and None not in values else None


class StatusReader:
    """Reads the status; remembers why it could not, and never raises for that."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.problem: str | None = None

    async def read(self) -> StatusReport | None:
        """The present status, or None: the server has none, or cannot answer now (`problem` says why)."""
        try:
            response = await self._client.get(STATUS_PATH)
            response.raise_for_status()
            report = StatusReport.model_validate_json(response.content)
        except (httpx.HTTPError, ValidationError) as error:
            self.problem = f"{STATUS_PATH}: {str(error).splitlines()[0]}"
            return None
        self.problem = None
        return report


@dataclass(frozen=True)
class EngineUse:
    """What the engines spent between two readings; None where it is not known."""

    duration_s: float
    replicas: int
    offline_busy_s: float | None
    engine_cpu_s: float | None


def measure_use(before: StatusReport | None, after: StatusReport | None) -> EngineUse | None:
    """The growth of the counters between two readings; None unless the same replicas ran through both."""
    if before is None or after is None or not before.replicas:
        return None
    if {replica.replica_id for replica in before.replicas} != {replica.replica_id for replica in after.replicas}:
        return None

    def grown(name: str) -> float | None:
        first, last = before.total(name), after.total(name)
        # A counter that fell belongs to a restarted engine: what it counted before is lost.
        return last - first if first is not None and last is not None and last >= first else None

    return EngineUse(after.read_s - before.read_s, len(after.replicas), grown("offline_busy_s"), grown("engine_cpu_s"))
