"""A cluster in virtual time: arrivals, a router, replicas that fail and drain, and batch work for them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal, Protocol

from conserve.simulator.engine_costs import EngineCosts
from conserve.simulator.engine_state import EngineLimits
from conserve.simulator.metrics import Metrics
from conserve.simulator.policies import SimPolicy
from conserve.simulator.replica import Replica
from conserve.simulator.request import SimRequest
from conserve.simulator.router import Router
from conserve.simulator.workload import Arrival


@dataclass(frozen=True)
class Incident:
    """Something that happens to a replica: it fails, begins to drain (no new requests), or comes (back) up."""

    at_s: float
    replica: int
    kind: Literal["fail", "drain", "start"]


class Supply(Protocol):
    """Where replicas get offline requests from."""

    @property
    def period_s(self) -> float:
        """How often `control` is called; `inf` for never."""

    def control(self, replicas: Sequence[Replica], now_s: float) -> None:
        """Decides anew who may have how much."""

    def top_up(self, replica: Replica, now_s: float) -> None:
        """Gives a replica as many requests as it may have in flight."""

    def finish(self, request: SimRequest, now_s: float) -> None:
        """A request is done."""

    def give_back(self, requests: Sequence[SimRequest], now_s: float) -> None:
        """Requests of a replica that has failed."""


class Cluster:
    """Replicas of one engine.

    Args:
        costs: Of an iteration.
        limits: Sizes of the engines.
        policy: How they schedule.
        replicas: How many.
        metrics: Where to count.
        seed: Decides everything random.
        supply: Of offline requests; None for none.
        coarse: As of `EngineState`.
        router: Decides where online requests go; by default with what replicas say when they are asked.
        pools: Replicas are in so many pools by turns, and online requests go to those of their own, as where users of
            several regions or hardware of several kinds have replicas of their own. Batches go to all.
    """

    def __init__(
        self,
        costs: EngineCosts,
        limits: EngineLimits,
        policy: SimPolicy,
        replicas: int,
        metrics: Metrics,
        seed: int,
        supply: Supply | None = None,
        *,
        coarse: bool = False,
        router: Router | None = None,
        pools: int = 1,
    ) -> None:
        if policy.batch_tokens:
            limits = EngineLimits(limits.max_num_seqs, policy.batch_tokens, limits.long_prefill_token_threshold)
        self.replicas = [Replica(number, costs, limits, metrics, seed, coarse=coarse) for number in range(replicas)]
        for replica in self.replicas:
            policy.equip(replica)
        self.metrics = metrics
        self._policy = policy
        self._supply = supply if policy.has_offline else None
        self._control_s = 0.0 if self._supply is not None else math.inf
        self._router = router or Router(seed)
        self._report_s = 0.0 if self._router.report_period_s else math.inf
        self._pools = pools
        self._update_serving()
        self._numbers = 0
        self._events: list[tuple[float, int, int, int]] = []  # time, order, replica, version of its step
        self._order = 0
        self.unserved: list[SimRequest] = []
        self.idle_since_s = 0.0
        """When the last event happened."""

    def feed(self, arrivals: Iterable[Arrival]) -> None:
        """Online requests that are there at the beginning."""
        for arrival in arrivals:
            self._route(arrival, 0.0)

    def run(self, arrivals: Iterable[Arrival], until_s: float, incidents: Sequence[Incident] = ()) -> float:
        """Runs until a time. Returns the processor time that it took, in seconds."""
        began_s = time.process_time()
        supply = self._supply
        coming = iter(arrivals if self._policy.has_online else ())
        arrival = next(coming, None)
        troubles = sorted(incidents, key=lambda incident: incident.at_s, reverse=True)
        control_s, report_s = self._control_s, self._report_s
        events = self._events
        arrival_s = arrival.arrival_s if arrival is not None else math.inf
        while True:
            event_s = events[0][0] if events else math.inf
            trouble_s = troubles[-1].at_s if troubles else math.inf
            now_s = min(arrival_s, event_s, control_s, trouble_s, report_s)
            if now_s >= until_s:
                break
            self.idle_since_s = now_s
            if now_s == event_s:
                _, _, number, version = heappop(events)
                replica = self.replicas[number]
                if version == replica.version:
                    replica.end_step(now_s, self._collect)
                    self._follow(replica, version)
            elif now_s == trouble_s:
                self._strike(troubles.pop(), now_s)
            elif now_s == control_s and supply is not None:
                supply.control(self.replicas, now_s)
                for replica in self._serving:
                    version = replica.version
                    supply.top_up(replica, now_s)
                    self._follow(replica, version)
                control_s = self._control_s = now_s + supply.period_s
            elif now_s == report_s:
                self._router.observe(self._serving, now_s)
                report_s = self._report_s = now_s + self._router.report_period_s
            elif arrival is not None:
                self._route(arrival, now_s)
                arrival = next(coming, None)
                arrival_s = arrival.arrival_s if arrival is not None else math.inf
        return time.process_time() - began_s

    def _route(self, arrival: Arrival, now_s: float) -> None:
        request = SimRequest(
            self._numbers,
            now_s,
            arrival.prompt_tokens,
            arrival.output_tokens,
            online=True,
            prefix=-arrival.prefix,
            prefix_tokens=arrival.prefix_tokens,
            pool=arrival.pool,
        )
        self._numbers += 1
        self._send(request, now_s)

    def _send(self, request: SimRequest, now_s: float) -> None:
        serving = self._of_pool[request.pool % self._pools]
        if not serving:
            self.unserved.append(request)
            return
        replica = self._router.choose(serving, request, now_s)
        if not replica.lets_in(request, now_s):
            return
        version = replica.version
        replica.arrive(request, now_s)
        self._follow(replica, version)

    def _follow(self, replica: Replica, version: int) -> None:
        if replica.version != version and replica.ends_s < math.inf:
            self._order += 1
            heappush(self._events, (replica.ends_s, self._order, replica.number, replica.version))

    def _collect(self, replica: Replica, now_s: float) -> None:
        finished = replica.state.finished
        if self._supply is not None:
            offline = [request for request in finished if not request.online]
            for request in offline:
                self._supply.finish(request, now_s)
                if replica.meter is not None:
                    replica.meter.note_finished(request.prompt_tokens, request.output_tokens)
            if offline and replica.status == "serving":
                self._supply.top_up(replica, now_s)
        finished.clear()

    def _strike(self, incident: Incident, now_s: float) -> None:
        replica = self.replicas[incident.replica]
        if incident.kind == "fail":
            online, offline = replica.fail()
            self._policy.equip(replica)
            self._update_serving()
            if self._supply is not None:
                self._supply.give_back(offline, now_s)
            for request in online:
                # Its client tries again. Who has had a first token has it; others wait since they first came.
                self.metrics.online_broken += request.first_token_s < math.inf
                self._send(_renew(request), now_s)
            return
        replica.status = "draining" if incident.kind == "drain" else "serving"
        self._update_serving()
        if self._supply is not None and incident.kind == "start":
            version = replica.version
            self._supply.top_up(replica, now_s)
            self._follow(replica, version)
        waiting, self.unserved = self.unserved, []
        for request in waiting:
            self._send(request, now_s)

    def _update_serving(self) -> None:
        self._serving = [replica for replica in self.replicas if replica.status == "serving"]
        self._of_pool = [
            [replica for replica in self._serving if replica.number % self._pools == pool]
            for pool in range(self._pools)
        ]


def _renew(request: SimRequest) -> SimRequest:
    again = SimRequest(
        request.number,
        request.arrival_s,
        request.prompt_tokens,
        request.output_tokens,
        online=True,
        prefix=request.prefix,
        prefix_tokens=request.prefix_tokens,
        pool=request.pool,
    )
    again.first_token_s = request.first_token_s
    return again
