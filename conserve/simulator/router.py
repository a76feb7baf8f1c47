"""Which replica an online request goes to in the simulator: `conserve.policy.routing` decides, as in a deployment."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal

from conserve.policy.outlook import Outlook
from conserve.policy.prefix_memory import Cut, Prompt
from conserve.policy.routing import TtftRouter
from conserve.simulator.replica import Replica
from conserve.simulator.request import SimRequest

RoutingKind = Literal["slo", "serve"]
"""`slo`: the lowest predicted TTFT; `serve`: of two replicas the one with fewer online requests, as Ray Serve does."""
STALE_PERIODS: Final = 4.0
"""Reports older than so many periods say nothing."""


class Router:
    """The fronts of a cluster, each with what it knows; requests come to them in turn.

    Args:
        seed: Decides the draws.
        kind: Of the decisions.
        report_period_s: All replicas report so often; 0: they are asked for each request.
        fronts: How many.
        choices: As of `TtftRouter`.

    Attributes:
        fronts: What decides in each of them.
    """

    def __init__(
        self,
        seed: int,
        kind: RoutingKind = "slo",
        report_period_s: float = 0.0,
        fronts: int = 1,
        choices: int | None = None,
    ) -> None:
        self.report_period_s = report_period_s
        self._kind = kind
        self._random = random.Random(seed)  # noqa: S311 - a simulation
        stale_after_s = STALE_PERIODS * report_period_s
        self.fronts: list[TtftRouter[Replica]] = [
            TtftRouter(stale_after_s, self._random, choices) for _ in range(fronts)
        ]
        for front in self.fronts:
            front.is_alone = fronts == 1 and report_period_s > 0
        self._turn = 0

    def observe(self, serving: Sequence[Replica], now_s: float) -> None:
        """All replicas report."""
        for front in self.fronts:
            front.retain(set(serving))
        for replica in serving:
            outlook = replica.report_outlook(now_s)
            for front in self.fronts:
                front.report(replica, outlook, front.number, now_s)

    def choose(self, serving: Sequence[Replica], request: SimRequest, now_s: float) -> Replica:
        """One of the replicas that serve, of which there is at least one."""
        if len(serving) == 1:
            return serving[0]
        if self._kind == "serve":
            return self._choose_shorter(serving)
        prompt = Prompt(request.prompt_tokens, _cut(request) if request.prefix else ())
        self._turn = (self._turn + 1) % len(self.fronts)
        front = self.fronts[self._turn]
        if not self.report_period_s:

            def look(replica: Replica) -> Outlook:
                return replica.report_outlook(now_s)

            chosen = front.choose(serving, prompt, now_s, look)[0]
            front.note_prefix(chosen, prompt, now_s)
            return chosen
        ranked = front.choose(serving, prompt, now_s)
        chosen = ranked[0] if ranked else self._choose_shorter(serving)
        front.note_sent(chosen, request.number, front.next_number(), prompt, now_s)
        return chosen

    def _choose_shorter(self, serving: Sequence[Replica]) -> Replica:
        one, other = self._random.sample(range(len(serving)), 2)
        return min(serving[one], serving[other], key=_count_online)


def _count_online(replica: Replica) -> int:
    state = replica.state
    return state.online.size + len(state.waiting) + len(state.online_prompts)


def _cut(request: SimRequest) -> tuple[Cut, ...]:
    return (Cut(request.prefix.to_bytes(8, "big", signed=True), request.prefix_tokens),)
