"""Serve's request router for the replicas: `conserve.policy.routing` with what they report.

Each process that has a handle of the deployment has a router. It needs no more than what Serve's controller sends to
all routers in any case; where that stops, reports grow old and Serve's own rule takes over. Ray pickles this module by
value, so it keeps no state of its own.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from typing import Any

from ray.serve.request_router import (
    LocalityMixin,
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from conserve.policy.prefix_memory import Prompt
from conserve.policy.routing import TtftRouter
from deployments import pulse
from deployments.online_trace import trace_routing
from deployments.prompt_text import measure_request
from deployments.ray_compat import PowerOfTwoChoicesRequestRouter, RawRequestInfo
from deployments.routing_report import MARK_HEADER, Mark, RoutingReport


class TtftRequestRouter(LocalityMixin, MultiplexMixin, RequestRouter):
    """The lowest predicted time to the first token; Serve's power of two choices where too little is known."""

    def initialize_state(self, stale_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Called by Serve with `request_router_kwargs`.

        Args:
            stale_after_s: Reports older than this say nothing.
            clock: Seconds, monotonic.
        """
        self._policy: TtftRouter[ReplicaID] = TtftRouter(stale_after_s, random.Random())  # noqa: S311 - no secret
        self._name = secrets.token_hex(8)
        self._heard: dict[ReplicaID, int] = {}
        self._others: dict[ReplicaID, bool] = {}
        self._clock = clock

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve whenever one has come, gone, or reported."""
        now_s = self._clock()
        for replica in replicas:
            report = RoutingReport.read(replica.routing_stats)
            # Each of them is sent again when another one has changed.
            if report is not None and report.number != self._heard.get(replica.replica_id):
                self._heard[replica.replica_id] = report.number
                pulse.SILENT.discard(replica.replica_id.unique_id)
                received = report.received.get(self._name, 0)
                self._policy.report(replica.replica_id, report.to_outlook(), received, now_s)
                self._others[replica.replica_id] = bool(report.received.keys() - {self._name})
        known = {replica.replica_id for replica in replicas}
        self._policy.retain(known)
        for gone in self._heard.keys() - known:
            del self._heard[gone], self._others[gone]
        self._policy.is_alone = not any(self._others.values())
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas; Serve takes the first one that has room in its queue."""
        # Also has Serve wait before it asks again.
        others: list[list[RunningReplica]] = await PowerOfTwoChoicesRequestRouter.choose_replicas(
            self, candidate_replicas, pending_request
        )
        if heard := self._list_heard(candidate_replicas):
            candidate_replicas = heard
            # Serve draws from all that there are, whatever the candidates.
            others = [kept for rank in others if (kept := [one for one in rank if one in heard])] or [heard]
        if pending_request is None:
            return others
        for info in _list_infos(pending_request):
            info.headers.pop(MARK_HEADER, None)  # A client's, or that of an earlier choice.
        if pending_request.metadata.multiplexed_model_id:
            return others
        with_room = {replica.replica_id: replica for replica in self.select_available_replicas(candidate_replicas)}
        if not with_room:
            return others
        prompt = measure_request(pending_request.args[0]) if pending_request.args else Prompt(1)
        ranked = self._policy.choose([*with_room], prompt, self._clock())
        if not ranked:
            return others
        self._mark(pending_request, ranked[0], prompt)
        return [*([with_room[replica_id]] for replica_id in ranked), *others]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Called by Serve when it sends a request to a replica, which may refuse it."""
        super().on_send_request(replica_id)
        pulse.note_sent(replica_id.unique_id, self._clock())

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve when a replica has taken a request."""
        self._policy.move(pending_request.metadata.internal_request_id, replica_id, self._clock())
        for info in _list_infos(pending_request):
            trace_routing(info, replica_id.unique_id, pending_request.created_at)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Called by Serve when a request has ended, or could not be sent."""
        self._policy.forget(internal_request_id)

    def _list_heard(self, replicas: list[RunningReplica]) -> list[RunningReplica]:
        """Those that have not fallen silent; nothing where that makes no difference, or leaves none."""
        now_s = self._clock()
        heard = [one for one in replicas if not pulse.SILENT.is_silent(one.replica_id.unique_id, now_s)]
        return heard if len(heard) < len(replicas) else []

    def _mark(self, pending_request: PendingRequest, replica_id: ReplicaID, prompt: Prompt) -> None:
        number, request_id = self._policy.next_number(), pending_request.metadata.internal_request_id
        tokens = self._policy.note_sent(replica_id, request_id, number, prompt, self._clock())
        for info in _list_infos(pending_request):
            info.headers[MARK_HEADER] = Mark(self._name, number, tokens).to_header()


def _list_infos(pending_request: PendingRequest) -> list[RawRequestInfo]:
    return [argument for argument in pending_request.args if isinstance(argument, RawRequestInfo)]
