"""Who gives up slots and KV blocks at one replica, and how many are kept free for bursts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from conserve.policy.preemption import LAST_PROMPT_TOKENS, PLENTY_SHARE, Victim, choose_victims, count_lost_tokens
from conserve.simulator.engine_state import EngineState
from conserve.simulator.harvest_limits import HarvestLimits
from conserve.simulator.host_copies import HostCopies
from conserve.simulator.offline_filling import Filling
from conserve.simulator.online_demand import OnlineDemand, measure_demand
from conserve.simulator.request import SimRequest

if TYPE_CHECKING:
    from conserve.simulator.stopped_pass import StoppedPasses


class MakingWay:
    """Preempts offline requests, those first that lose least.

    Args:
        state: Of the engine.
        copies: Blocks in host memory; None for none.
        stopped: Passes that are to go on.

    Attributes:
        kept_by_new, kept_by_running: KV blocks that offline requests leave free: new ones, those that run.
    """

    def __init__(self, state: EngineState, copies: HostCopies | None, stopped: StoppedPasses) -> None:
        self.kept_by_new = self.kept_by_running = 0
        self._state = state
        self._copies = copies
        self._stopped = stopped

    def keep_free(self, blocks: int) -> None:
        """So many blocks are to be free for a burst; what is saved is as good as free."""
        if self._copies is None:
            self.kept_by_new = self.kept_by_running = blocks
        else:
            self.kept_by_new = max(0, blocks - self._copies.count_saved_of_running()) if blocks else 0
            self.kept_by_running = 0

    def make_way(self, demand: OnlineDemand, limits: HarvestLimits, now_s: float) -> OnlineDemand:
        """Preempts until online requests have slots and blocks, and admits the arrivals; returns the demand then."""
        state = self._state
        if not demand.arrivals and demand.blocks <= state.kv.free_blocks:
            return demand
        if demand.blocks > state.kv.free_blocks and self._copies is not None:
            self._copies.release()
        while True:
            offline = state.offline.size + len(state.offline_prompts)
            slots_short = demand.slots + offline - state.limits.max_num_seqs if demand.arrivals else 0
            blocks_short = demand.blocks - state.kv.free_blocks
            if not offline or not self._preempt(state.list_offline, slots_short, blocks_short, now_s):
                break
            demand = measure_demand(state, limits, now_s)
        admitted = self._admit(demand)
        if admitted < len(demand.arrivals):
            # There is no room although all have made way: they wait, and others go on.
            waiting = demand.arrivals[admitted:]
            kept = [chunk for chunk in demand.chunks if chunk.request not in waiting]
            shape = state.decode_shape()
            for request, tokens in kept:
                shape = shape.add_prefill(tokens, request.computed)
            demand.chunks, demand.shape = kept, shape
            demand.tokens = shape.tokens
            demand.blocks = 0
            demand.arrivals = demand.arrivals[:admitted]
        return demand

    def give_way(self, filling: Filling, now_s: float) -> bool:
        """Preempts offline requests for others of them that cannot go on; the oldest one goes on."""
        if self._copies is not None and self._copies.release():
            return True
        others = self._state.list_offline()[1:]
        return self._preempt(lambda: others, 0, filling.blocks_short, now_s)

    def _admit(self, demand: OnlineDemand) -> int:
        state = self._state
        for number, request in enumerate(demand.arrivals):
            cached = state.kv.find_cached(request)
            if (
                state.running >= state.limits.max_num_seqs
                or state.kv.blocks_for(state.kv.count_needed(request)) > state.kv.free_blocks
            ):
                return number
            state.waiting.popleft()
            state.admit(request, cached)
        return len(demand.arrivals)

    def _preempt(
        self, list_candidates: Callable[[], Sequence[SimRequest]], slots_short: int, blocks_short: int, now_s: float
    ) -> bool:
        if slots_short <= 0 and blocks_short <= 0:
            return False
        state = self._state
        candidates = list_candidates()
        stays = blocks_short <= 0 and state.kv.free_blocks >= PLENTY_SHARE * state.kv.blocks
        prompts = [request for request in candidates if request not in state.offline]
        by_id = {request.key: request for request in candidates}
        victims = [self._as_victim(request, stays, prompts) for request in candidates]
        chosen = choose_victims(victims, max(0, slots_short), max(0, blocks_short))
        for request_id in chosen:
            request = by_id[request_id]
            kept = self._stopped.drop_request(request)
            computed = state.preempt(request, stays=True)
            if self._copies is not None:
                self._copies.note_preempted(request, computed, now_s, for_blocks=blocks_short > 0)
            state.metrics.recomputed_tokens += kept
        return bool(chosen)

    def _as_victim(self, request: SimRequest, stays: bool, prompts: Sequence[SimRequest]) -> Victim:
        state = self._state
        computed = state.computed_of(request)
        saved = self._copies.count_saved_blocks(request) if self._copies is not None else 0
        kept = max(request.cached // state.kv.block_size, saved)
        lost = count_lost_tokens(computed, kept, state.kv.block_size, stays_cached=stays)
        lost += self._stopped.count_kept_tokens(request)
        if prompts == [request]:
            lost += LAST_PROMPT_TOKENS
        return Victim(request.key, state.kv.count_freed(computed, request), lost)
