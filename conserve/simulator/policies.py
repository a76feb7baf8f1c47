"""What is compared: how an engine schedules, and what comes before it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from conserve.policy.overload import OverloadGate, OverloadLimits
from conserve.simulator.capacity_meter import CapacityMeter
from conserve.simulator.engine_state import EngineState
from conserve.simulator.harvest_limits import Mechanisms
from conserve.simulator.harvest_planner import HarvestPlanner
from conserve.simulator.replica import Replica
from conserve.simulator.stock_planner import StockPlanner

Kind = Literal["stock", "fcfs", "chunked", "harvest"]


@dataclass(frozen=True)
class SimPolicy:
    """One of the compared systems.

    Attributes:
        name: As on the command line.
        kind: Of its engine's scheduling.
        about: One line for people.
        has_online, has_offline: Which requests it gets.
        mechanisms: Of ConServe's engine.
        batch_tokens: Of the largest iteration; None for the engine's own.
        gateway: Offline requests in flight are limited by a gateway that looks at online latencies.
        has_objectives: Whether it is told the objectives.
        overload: Which online requests it refuses, by the objectives; None for none.
    """

    name: str
    kind: Kind
    about: str
    has_online: bool = True
    has_offline: bool = True
    mechanisms: Mechanisms = field(default_factory=Mechanisms)
    batch_tokens: int | None = None
    gateway: bool = False
    has_objectives: bool = True
    overload: OverloadLimits | None = None

    def with_objectives(self, ttft_slo_ms: float, tbt_slo_ms: float) -> SimPolicy:
        """The same, told these objectives if it takes any."""
        if not self.has_objectives:
            ttft_slo_ms = tbt_slo_ms = math.inf
        return replace(self, mechanisms=replace(self.mechanisms, ttft_slo_ms=ttft_slo_ms, tbt_slo_ms=tbt_slo_ms))

    def equip(self, replica: Replica) -> None:
        """Gives a replica its planner."""
        state: EngineState = replica.state
        replica.tbt_slo_ms = self.mechanisms.tbt_slo_ms
        if self.kind == "harvest":
            planner = HarvestPlanner(state, self.mechanisms)
            replica.planner = replica.stopping = planner
            replica.meter = CapacityMeter(self.mechanisms.tbt_slo_ms)
        else:
            replica.planner = StockPlanner(state, online_first=self.kind == "chunked", in_order=self.kind == "fcfs")
            # Memory is full as a rule, and each of its iterations costs little to decide.
            state.coarse = state.coarse and not self.has_offline
        if self.overload is not None:
            objectives_ms = [(self.mechanisms.ttft_slo_ms, self.mechanisms.tbt_slo_ms)]
            state.gate = OverloadGate(objectives_ms, self.overload)


_BUDGET_ONLY = Mechanisms(safepoints=False, resume=False, checkpoints=False, arrival_guard=False, prefix_order=False)
_ALL: Final = (
    SimPolicy("online-only", "stock", "online requests alone", has_offline=False),
    SimPolicy("offline-only", "stock", "offline requests alone", has_online=False),
    SimPolicy("stock-priority", "stock", "vLLM with priorities"),
    SimPolicy("stock-fcfs", "fcfs", "vLLM as it is by default: first come, first served"),
    SimPolicy("chunked-priority", "chunked", "online first in each batch, prompts in chunks (Sarathi-like)"),
    SimPolicy("gateway-limit", "stock", "offline requests in flight limited by latencies (AIMD)", gateway=True),
    SimPolicy("budget-only", "harvest", "iterations limited by TBT, no stops, no checkpoints", mechanisms=_BUDGET_ONLY),
    SimPolicy("conserve", "harvest", "ConServe"),
    SimPolicy("no-safepoints", "harvest", "without stops", mechanisms=Mechanisms(safepoints=False)),
    SimPolicy("no-resume", "harvest", "stopped passes are thrown away", mechanisms=Mechanisms(resume=False)),
    SimPolicy("no-checkpoints", "harvest", "preempted work is recomputed", mechanisms=Mechanisms(checkpoints=False)),
    SimPolicy("no-budget", "harvest", "iterations are full", mechanisms=Mechanisms(token_budget=False)),
    SimPolicy("ceiling", "harvest", "without objectives: what could be done", has_objectives=False),
)
POLICIES: Final = {policy.name: policy for policy in _ALL}
