"""What replicas tell the routers of online requests, over Serve's routing statistics, and routers the replicas."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conserve.policy.outlook import Outlook

KEY: Final = "conserve"
"""Of the report, among the routing statistics of a replica."""
MARK_HEADER: Final = "x-conserve-routed"
"""Header of a request from the router to the replica."""
MOST_ROUTERS: Final = 256
"""A replica remembers so many routers, the latest ones: one for each process of the front."""
ROUTER_LIFETIME_S: Final = 60.0
"""A router that has sent a replica nothing for so long is not reported on."""


class RoutingReport(BaseModel):
    """What a request would find at a replica; `number` goes up with each report.

    The fields from `wait_ms` on are those of `Outlook`. `received` is the highest number that the replica has seen of
    each router's requests. Peers of another version may say more or less; a field's meaning never changes, and
    `version` is for people.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: int = 1
    number: int = Field(ge=0)
    received: dict[str, int] = Field(default_factory=dict)
    wait_ms: float = Field(0.0, ge=0)
    prompt_tokens: float = Field(0.0, ge=0)
    iteration_ms: float = Field(0.0, ge=0)
    prompt_token_ms: float = Field(0.0, ge=0)
    iteration_tokens: float = Field(1.0, ge=1)
    free_slots: float = math.inf
    free_kv_tokens: float = math.inf

    @classmethod
    def of(cls, outlook: Outlook, number: int, received: Mapping[str, int]) -> RoutingReport:
        """The report that says so."""
        return cls(number=number, received=dict(received), **outlook._asdict())

    @classmethod
    def read(cls, stats: Mapping[str, Any] | None) -> RoutingReport | None:
        """The report among a replica's routing statistics; None if there is none that can be understood."""
        try:
            return cls.model_validate((stats or {}).get(KEY))
        except ValidationError:
            return None

    def to_stats(self) -> dict[str, Any]:
        """As the replica's routing statistics have it."""
        return {KEY: self.model_dump()}

    def to_outlook(self) -> Outlook:
        """What a request would find."""
        return Outlook(*(getattr(self, name) for name in Outlook._fields))


class Mark(NamedTuple):
    """What a router tells a replica of a request: by which router, its number there, and prompt tokens to compute."""

    router: str
    number: int
    prompt_tokens: float

    def to_header(self) -> str:
        """The value of the header."""
        return f"{self.router}:{self.number}:{self.prompt_tokens:.0f}"

    @classmethod
    def read(cls, header: str | None) -> Mark | None:
        """The mark of a header; None if it is none."""
        try:
            router, number, tokens = (header or "").split(":")
            return cls(router, int(number), max(0.0, float(tokens)))
        except ValueError:
            return None


class Received:
    """The highest number that a replica has seen of each router that has sent it requests lately.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._numbers: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._clock = clock

    @property
    def numbers(self) -> Mapping[str, int]:
        """By router."""
        since_s = self._clock() - ROUTER_LIFETIME_S
        return {router: number for router, (number, seen_s) in self._numbers.items() if seen_s > since_s}

    def note(self, mark: Mark) -> None:
        """A request has come."""
        before, _ = self._numbers.get(mark.router, (0, 0.0))
        self._numbers[mark.router] = (max(mark.number, before), self._clock())
        self._numbers.move_to_end(mark.router)
        if len(self._numbers) > MOST_ROUTERS:
            self._numbers.popitem(last=False)
