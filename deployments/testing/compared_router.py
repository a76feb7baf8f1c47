"""The router that the load test of the routing uses: each request says which of the two rules it is routed by."""

from __future__ import annotations

from typing import Final

from ray.serve.request_router import PendingRequest, RunningReplica

from deployments.ray_compat import PowerOfTwoChoicesRequestRouter, RawRequestInfo
from deployments.router import TtftRequestRouter

RULE_HEADER: Final = "x-conserve-routing"
"""`serve` for Serve's own rule; ours otherwise."""


class ComparedRouter(TtftRequestRouter):
    """Both rules over the same replicas, so that they can be measured by turns."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas, by the rule that the request asks for."""
        arguments = pending_request.args if pending_request is not None else ()
        if any(isinstance(one, RawRequestInfo) and one.headers.get(RULE_HEADER) == "serve" for one in arguments):
            ranks: list[list[RunningReplica]] = await PowerOfTwoChoicesRequestRouter.choose_replicas(
                self, candidate_replicas, pending_request
            )
            return ranks
        return await super().choose_replicas(candidate_replicas, pending_request)
