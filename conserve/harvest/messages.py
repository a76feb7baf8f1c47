"""What replicas and the controller tell each other over Redis, as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from conserve.policy.allotment import Allotment, JobShare, ReplicaCapacity, ReplicaState
from conserve.policy.harvest_rate import IterationCosts


class _Message(BaseModel):
    # A newer peer may say more than this one understands.
    model_config = ConfigDict(extra="ignore", frozen=True)


class CapacityReport(_Message):
    """What a replica says about itself, some times a second.

    Counts are requests in the engine now; `*_busy_s`, `*_tokens` and `engine_cpu_s` are totals since the replica
    started (see `conserve.engine.engine.EngineStats`). `window` is the number of offline requests that it may have in
    flight, and `alone` says that it goes by its own rule because no allotment reaches it. `journaled_tokens` to
    `restarts` are those of `conserve.harvest.journaling.JournalCounts`, and `costs` are what its latency model has
    learnt, if it has one that is ready. Of the batches in `stopped` it begins nothing for a while, for their faults.
    """

    replica_id: str
    model: str
    state: ReplicaState
    window: int = Field(ge=0)
    alone: bool = False
    online_running: int = 0
    online_waiting: int = 0
    offline_running: int = 0
    kv_usage: float = 0.0
    online_busy_s: float = 0.0
    offline_busy_s: float = 0.0
    engine_cpu_s: float = 0.0
    online_requests: int = 0
    offline_requests: int = 0
    offline_prompt_tokens: int = 0
    offline_output_tokens: int = 0
    journaled_tokens: int = 0
    resumed_requests: int = 0
    reused_tokens: int = 0
    restarts: dict[str, int] = Field(default_factory=dict)
    costs: IterationCosts = IterationCosts()
    stopped: tuple[str, ...] = ()

    def to_capacity(self) -> ReplicaCapacity:
        """The part that decisions are made from."""
        return ReplicaCapacity(
            replica_id=self.replica_id,
            model=self.model,
            state=self.state,
            online_running=self.online_running,
            online_waiting=self.online_waiting,
            kv_usage=self.kv_usage,
            offline_running=self.offline_running,
            stopped=frozenset(self.stopped),
        )


class AllotmentMessage(_Message):
    """What the controller lets a replica harvest, until it expires."""

    window: int = Field(ge=0)
    jobs: tuple[JobShare, ...] = ()
    late: tuple[JobShare, ...] = ()
    floor: int = Field(0, ge=0)
    floor_share: float = Field(0.0, ge=0, le=1)

    @classmethod
    def of(cls, allotment: Allotment) -> AllotmentMessage:
        """The message that carries `allotment`."""
        return cls(
            window=allotment.window,
            jobs=allotment.jobs,
            late=allotment.late,
            floor=allotment.floor,
            floor_share=allotment.floor_share,
        )

    def to_allotment(self) -> Allotment:
        """The allotment that the message carries."""
        return Allotment(self.window, self.jobs, self.late, self.floor, self.floor_share)
