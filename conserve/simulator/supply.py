"""An offline backlog that never ends: each replica always has so many requests in flight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from conserve.simulator.gateway import PERIOD_S, ConcurrencyLimit
from conserve.simulator.replica import Replica
from conserve.simulator.request import SimRequest

FIRST_NUMBER = 1 << 40
"""Numbers of offline requests are above those of online ones."""


class EndlessSupply:
    """Gives each replica a constant number of offline requests, or as many as a gateway allows.

    Args:
        requests: Endless: prompt tokens, output tokens, prefix, its tokens.
        in_flight: In each replica, running or waiting.
        gateway_slo_ms: A gateway keeps the time to the first token below this; None without one.
    """

    def __init__(
        self, requests: Iterable[tuple[int, int, int, int]], in_flight: int, gateway_slo_ms: float | None = None
    ) -> None:
        self._requests: Iterator[tuple[int, int, int, int]] = iter(requests)
        self._in_flight = in_flight
        self._slo_ms = gateway_slo_ms
        self._limits: dict[int, ConcurrencyLimit] = {}
        self._number = FIRST_NUMBER
        self._returned: list[SimRequest] = []
        self._before: dict[int, tuple[int, float]] = {}

    @property
    def period_s(self) -> float:
        """How often the gateway looks; without one once is enough."""
        return math.inf if self._slo_ms is None else PERIOD_S

    def control(self, replicas: Sequence[Replica], now_s: float) -> None:
        """The gateway looks at the replicas."""
        if self._slo_ms is None:
            return
        for replica in replicas:
            limit = self._limits.setdefault(replica.number, ConcurrencyLimit(self._in_flight, self._slo_ms))
            report = replica.report()
            limit.update(replica.take_longest_ttft_ms(), report.online_waiting)

    def top_up(self, replica: Replica, now_s: float) -> None:
        """Gives a replica as many requests as it may have in flight."""
        limit = self._limits.get(replica.number)
        most = self._in_flight if limit is None else limit.limit
        for _ in range(most - replica.state.offline_running):
            request = self._next(now_s)
            if request is None:
                return
            replica.feed(request, now_s)

    def finish(self, request: SimRequest, now_s: float) -> None:
        """A request is done; there are always others."""

    def give_back(self, requests: Sequence[SimRequest], now_s: float) -> None:
        """Requests of a replica that has failed begin anew."""
        for request in requests:
            self._returned.append(begin_anew(request))

    def _next(self, now_s: float) -> SimRequest | None:
        if self._returned:
            return self._returned.pop(0)
        found = next(self._requests, None)
        if found is None:
            return None
        self._number += 1
        prompt, output, prefix, prefix_tokens = found
        return SimRequest(self._number, now_s, prompt, output, online=False, prefix=prefix, prefix_tokens=prefix_tokens)


def begin_anew(request: SimRequest) -> SimRequest:
    """The request of a replica that has failed, as it is queued again."""
    again = SimRequest(
        request.number,
        request.arrival_s,
        request.prompt_tokens,
        request.output_tokens,
        online=False,
        prefix=request.prefix,
        prefix_tokens=request.prefix_tokens,
        batch_id=request.batch_id,
    )
    again.best_prompt = request.best_prompt
    return again
