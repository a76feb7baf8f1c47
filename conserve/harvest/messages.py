"""What replicas and the controller tell each other over Redis, as JSON.

During a rolling update the two are of different versions. What a newer peer says beyond this is ignored, and what an
older one does not say has a default that means "not known". A field is never taken away, nor given another meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, get_args

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from conserve.policy.allotment import Allotment, JobShare
from conserve.policy.fair_shares import ShareRecord
from conserve.policy.harvest_rate import IterationCosts
from conserve.policy.replica_capacity import Headroom, KvRoom, ReplicaCapacity, ReplicaState

SCHEMA_VERSION: Final = 2
"""Of these messages. 1 had no `schema_version`, no times, and nothing of headroom, KV memory and attainment."""


NONE_STOPPED: Final[frozenset[str]] = frozenset()
_STATES: Final = frozenset(get_args(ReplicaState))

Count = Annotated[int, msgspec.Meta(ge=0)]


def _read_state(value: Any) -> Any:
    # Of a state that only a newer version knows no more is known than that it is another than to serve.
    return value if value in _STATES or not isinstance(value, str) else "draining"


class LatencyNow(BaseModel):
    """What the online requests of one class have felt at a replica in its last ten seconds; None: it had none.

    TTFT is of streamed answers, and TBT of the outputs of the engine after the first.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    tbt_p50_ms: float | None = None
    tbt_p95_ms: float | None = None


class CapacityReport(BaseModel):
    """What a replica says about itself, some times a second.

    Counts are requests in the engine now; `*_busy_s`, `*_tokens` and `engine_cpu_s` are totals since the replica
    started (see `conserve.engine.engine.EngineStats`). `window` is the number of offline requests that it may have in
    flight, and `alone` says that it goes by its own rule because no allotment reaches it. `journaled_tokens` to
    `restarts` are those of `conserve.harvest.journaling.JournalCounts`, and `costs` are what its latency model has
    learnt, if it has one that is ready. Of the batches in `stopped` it begins nothing for a while, for their faults.

    Since version 2 (0 or None is "not known" where nothing else is said):

    - `at_ms` is when the report was made, by the clock of the Redis server.
    - `kv_tokens` is what the KV cache has room for. `kv_free_tokens` of it nobody uses, `kv_reserved_tokens` are kept
      free for bursts of online requests, and `kv_offline_tokens` are held by offline requests.
    - `checkpoint_tokens` is what host memory has room for, `checkpoint_free_tokens` what of that is not in use.
    - `online_rate_per_s` is how many online requests come in a second, `online_forecast_per_s` how many are to be
      expected in the next seconds.
    - `headroom_tokens_per_s` are the offline tokens it can do in a second while online requests meet their objectives;
      with `headroom_requests` in flight it does them.
    - `slo_attainment` is the share of the latest online tokens that came in time; None without any.

    Later, and only for who looks on (the console); None where it is not known, as with vLLM's own scheduler:

    - `latency` is what online requests felt lately, by class.
    - `stops` are passes of offline work that were stopped between two layers, `resumed_passes` those continued,
      `offline_preemptions` the offline requests preempted, `restored_tokens` those whose KV came back from host memory.
    - `offline_computed_tokens` are the offline tokens of its iterations: they grow while requests run, those above
      when requests end.
    """

    # A newer peer may say more than this one understands.
    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = Field(1, ge=1)
    at_ms: int = 0
    replica_id: str
    model: str
    state: Annotated[ReplicaState, BeforeValidator(_read_state)]
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
    kv_tokens: int = 0
    kv_free_tokens: int = 0
    kv_reserved_tokens: int = 0
    kv_offline_tokens: int = 0
    checkpoint_tokens: int = 0
    checkpoint_free_tokens: int = 0
    online_rate_per_s: float | None = None
    online_forecast_per_s: float | None = None
    headroom_tokens_per_s: float | None = None
    headroom_requests: float | None = None
    slo_attainment: float | None = None
    latency: dict[str, LatencyNow] = Field(default_factory=dict)
    stops: int | None = None
    resumed_passes: int | None = None
    offline_preemptions: int | None = None
    restored_tokens: int | None = None
    offline_computed_tokens: int | None = None

    def to_capacity(self) -> ReplicaCapacity:
        """What the policies take."""
        return ReplicaLine(*(getattr(self, name) for name in ReplicaLine.__struct_fields__)).to_capacity()


class ReplicaLine(msgspec.Struct, frozen=True, gc=False):
    """The part of a `CapacityReport` that decisions are made from.

    The controller reads thousands of them a second, which takes a sixth of the time with msgspec that it takes with
    pydantic.
    """

    replica_id: str
    model: str
    state: str
    at_ms: int = 0
    online_running: int = 0
    online_waiting: int = 0
    offline_running: int = 0
    kv_usage: float = 0.0
    stopped: tuple[str, ...] = ()
    kv_tokens: int = 0
    kv_free_tokens: int = 0
    kv_reserved_tokens: int = 0
    kv_offline_tokens: int = 0
    headroom_tokens_per_s: float | None = None
    headroom_requests: float | None = None
    slo_attainment: float | None = None

    def to_capacity(self, now_ms: int = 0, silent_ms: int = 0) -> ReplicaCapacity:
        """What the policies take.

        Args:
            now_ms: Now, by the clock of the Redis server.
            silent_ms: A replica whose report is older is silent; one of an older version never is.
        """
        headroom = kv_room = None
        if self.headroom_tokens_per_s is not None and self.headroom_requests is not None:
            headroom = Headroom(self.headroom_tokens_per_s, self.headroom_requests)
        if self.kv_tokens:
            kv_room = KvRoom(self.kv_tokens, self.kv_free_tokens, self.kv_reserved_tokens, self.kv_offline_tokens)
        return ReplicaCapacity(
            self.replica_id,
            self.model,
            _read_state(self.state),
            self.online_running,
            self.online_waiting,
            self.kv_usage,
            self.offline_running,
            frozenset(self.stopped) if self.stopped else NONE_STOPPED,
            headroom,
            kv_room,
            self.slo_attainment,
            0 < self.at_ms < now_ms - silent_ms,
        )


class AllotmentMessage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What the controller lets a replica harvest, until it expires; as in `policy.allotment.Allotment`.

    `at_ms` is when that was decided, by the clock of the Redis server. Since version 2: `window_tokens` and
    `request_tokens`.
    """

    window: Count
    jobs: tuple[JobShare, ...] = ()
    late: tuple[JobShare, ...] = ()
    floor: Count = 0
    floor_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    window_tokens: Count | None = None
    request_tokens: dict[str, float] = {}
    schema_version: int = 1
    at_ms: int = 0

    @classmethod
    def of(cls, allotment: Allotment, at_ms: int = 0) -> AllotmentMessage:
        """The message that carries `allotment`."""
        return cls(
            allotment.window,
            allotment.jobs,
            allotment.late,
            allotment.floor,
            allotment.floor_share,
            allotment.window_tokens,
            dict(allotment.request_tokens),
            SCHEMA_VERSION,
            at_ms,
        )

    def to_allotment(self) -> Allotment:
        """The allotment that the message carries."""
        return Allotment(
            self.window,
            self.jobs,
            self.late,
            self.floor,
            self.floor_share,
            self.window_tokens,
            self.request_tokens,
        )


class ControllerRecord(msgspec.Struct, frozen=True):
    """What a controller that takes over goes on from: how far ahead and behind of each other tenants are, by model."""

    shares: ShareRecord = ShareRecord()
    schema_version: int = 1
    at_ms: int = 0
