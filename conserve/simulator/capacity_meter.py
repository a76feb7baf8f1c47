"""What a simulated replica says about itself, as the harvester of a real one does."""

from __future__ import annotations

import math

from conserve.policy.harvest_rate import IterationCosts, measure_costs
from conserve.policy.headroom import find_headroom
from conserve.policy.online_trend import OnlineTrend
from conserve.policy.replica_capacity import Headroom, KvRoom
from conserve.simulator.engine_state import EngineState

COSTS_KEPT_S = 10.0
"""A latency model is asked again for its costs after so long."""


class CapacityMeter:
    """Measures headroom and KV memory.

    Args:
        tbt_slo_ms: Objective of online requests.
    """

    def __init__(self, tbt_slo_ms: float) -> None:
        self._tbt_slo_ms = tbt_slo_ms
        self._trend = OnlineTrend()
        self._requests = 0
        self._costs = IterationCosts()
        self._costs_until_s = -math.inf
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._finished = 0

    def note_arrival(self) -> None:
        """An online request has come."""
        self._requests += 1

    def note_finished(self, prompt_tokens: int, output_tokens: int) -> None:
        """An offline request is done."""
        self._finished += 1
        self._prompt_tokens += prompt_tokens
        self._output_tokens += output_tokens

    def find_headroom(self, state: EngineState, now_s: float) -> Headroom | None:
        """What it can do for offline requests."""
        self._trend.observe(now_s, self._requests, state.online.size)
        if now_s >= self._costs_until_s:
            self._costs, self._costs_until_s = measure_costs(state.model), now_s + COSTS_KEPT_S
        shape = (self._prompt_tokens / self._finished, self._output_tokens / self._finished) if self._finished else ()
        return find_headroom(self._costs, self._trend.expected_running, self._tbt_slo_ms, *shape)


def measure_kv_room(state: EngineState, kept_free_blocks: int) -> KvRoom:
    """KV memory of a replica, and who holds it."""
    offline_tokens = state.offline.context + sum(request.computed for request in state.offline_prompts)
    size = state.kv.block_size
    return KvRoom(state.kv.capacity, max(0, state.kv.free_tokens), kept_free_blocks * size, offline_tokens)
