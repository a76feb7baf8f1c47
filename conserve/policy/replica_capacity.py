"""What replicas say about themselves, as far as decisions are made from it.

Structs of msgspec: to make one takes a third of the time of a dataclass, and there are thousands of them a second. They
hold nothing that could hold them again, so the collector leaves them alone (`gc=False`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

ReplicaState = Literal["starting", "serving", "draining"]


class KvRoom(msgspec.Struct, frozen=True, gc=False):
    """KV memory of a replica, in tokens.

    Attributes:
        tokens: All that there is room for.
        free_tokens: Nobody uses.
        reserved_tokens: Kept free for bursts of online requests.
        offline_tokens: Offline requests hold, and give up when online ones need it.
    """

    tokens: int
    free_tokens: int
    reserved_tokens: int
    offline_tokens: int

    @property
    def for_offline_tokens(self) -> int:
        """What offline requests may hold now, those that they hold included."""
        return max(0, self.free_tokens + self.offline_tokens - self.reserved_tokens)


class Headroom(msgspec.Struct, frozen=True, gc=False):
    """What a replica can do for offline requests while its online ones meet their objectives.

    Attributes:
        tokens_per_s: Offline tokens, prompt and output.
        requests: So many in flight use that up.
    """

    tokens_per_s: float
    requests: float


class ReplicaCapacity(msgspec.Struct, frozen=True, gc=False):
    """What a replica says about itself.

    `online_running` and `online_waiting` count online requests that have and have not got their first token;
    `kv_usage` is the share of KV blocks in use, 0 to 1; `offline_running` counts what is in flight of its window. Of
    the batches in `stopped` it begins nothing for a while, for their faults. Of `headroom`, `kv_room` and
    `slo_attainment` (share of the latest online tokens that came in time) those are None that it does not know: it runs
    vLLM's own scheduler, has not learnt enough yet, or is of an older version. One that was not heard of for some time
    is `silent`.
    """

    replica_id: str
    model: str
    state: ReplicaState
    online_running: int = 0
    online_waiting: int = 0
    kv_usage: float = 0.0
    offline_running: int = 0
    stopped: frozenset[str] = frozenset()
    headroom: Headroom | None = None
    kv_room: KvRoom | None = None
    slo_attainment: float | None = None
    silent: bool = False
