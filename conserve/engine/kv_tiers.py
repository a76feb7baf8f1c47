"""KV memory of the device and of the host: what is kept free for bursts, what is copied, and what comes back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import attrgetter
from typing import Any

from conserve.engine.checkpoints import Checkpoints
from conserve.engine.copy_plan import read_copy_note
from conserve.engine.lanes import is_offline, split_lanes
from conserve.engine.offline_share import KeptFree, OfflineShare
from conserve.engine.online_demand import OnlineDemand, count_growth, count_slots
from conserve.engine.page import Counters
from conserve.engine.saving import Pressure
from conserve.engine.step_plan import StopNote
from conserve.engine.vllm_compat import ModelRunnerOutput, Request, Scheduler, SchedulerOutput
from conserve.policy.kv_reserve import KvReserve

MOST_AT_ONCE = 16
"""So many preempted requests go on in one step, at most: each is looked up in the prefix cache."""
_arrival_time = attrgetter("arrival_time")


class KvTiers:
    """What our scheduler knows of KV memory besides what vLLM's block pool does.

    Args:
        scheduler: Ours.
        checkpoints: Blocks in host memory; None where there are none, and then nothing here is about them.
        counters: Where to count.

    Attributes:
        checkpoints: As given.
        reserve: Blocks that are kept free for bursts of online requests.
    """

    def __init__(self, scheduler: Scheduler, checkpoints: Checkpoints | None, counters: Counters) -> None:
        self.checkpoints = checkpoints
        self.reserve = KvReserve(scheduler.kv_cache_manager.block_pool.num_gpu_blocks)
        self._scheduler = scheduler
        self._counters = counters

    def set_enabled(self, enabled: bool) -> None:
        """Whether blocks are copied, where they can be."""
        if self.checkpoints is not None:
            self.checkpoints.enabled = enabled

    # Room.

    def observe_arrival(self, request: Request, now_s: float) -> None:
        """An online request has come."""
        self.reserve.observe(now_s, -(-request.num_prompt_tokens // self._scheduler.block_size) + 1)

    def find_kept_free(self, offline: Sequence[Request], now_s: float) -> KeptFree:
        """KV blocks that the running offline requests and those that come leave free for online ones."""
        blocks = self.reserve.blocks(now_s)
        kept = KeptFree(blocks, blocks)
        if self.checkpoints is not None and self.checkpoints.is_on:
            # What is saved is given up at once, and at little cost: it serves a burst as well as what is free. So who
            # runs may grow into what is kept free: to preempt another one for that would help nobody.
            kept = KeptFree(max(0, blocks - self.checkpoints.count_saved_of(offline)) if blocks else 0, 0)
        self._counters.kv_reserve_blocks = kept.by_new
        return kept

    def count_free(self) -> int:
        """KV blocks that nobody uses."""
        return int(self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def report(self, running: Sequence[Request]) -> None:
        """Says how much of the device's memory is free, and how much the offline requests among these hold."""
        counters = self._counters
        counters.kv_blocks = self._scheduler.kv_cache_manager.block_pool.num_gpu_blocks
        counters.kv_block_tokens = self._scheduler.block_size
        counters.kv_free_blocks = self.count_free()
        counters.kv_offline_tokens = sum(request.num_computed_tokens for request in running if is_offline(request))

    def count_saved_blocks(self, request: Request) -> int:
        """Leading blocks of a request that come back by a copy if it is preempted."""
        return self.checkpoints.count_saved_blocks(request) if self.checkpoints is not None else 0

    def release_landed(self) -> bool:
        """Gives back what is held for requests that wait, for others need the room; False if there is nothing."""
        return self.checkpoints is not None and self.checkpoints.release_landed()

    # What goes and what comes.

    def note_preempted(self, request: Request, now_s: float, *, for_blocks: bool) -> None:
        """As `Checkpoints.note_preempted`, of any request."""
        if self.checkpoints is not None and is_offline(request):
            self.checkpoints.note_preempted(request, now_s, for_blocks=for_blocks)

    def note_freed(self) -> None:
        """As `Checkpoints.note_freed`."""
        if self.checkpoints is not None:
            self.checkpoints.note_freed()

    def extend_hit(self, request: Request, hit: Any) -> Any:
        """As `Landings.extend_hit`."""
        return hit if self.checkpoints is None else self.checkpoints.extend_hit(request, hit)

    def release_gone(self, request_ids: Collection[str]) -> None:
        """Lets go of what is kept for requests that have come to their end."""
        if self.checkpoints is not None and request_ids:
            self.checkpoints.release_gone(request_ids)

    def forget(self) -> None:
        """What is in host memory is worth nothing any more."""
        if self.checkpoints is not None:
            self.checkpoints.forget()

    def prefetch(self, share: OfflineShare, demand: OnlineDemand, now_s: float, *, is_alone: bool) -> None:
        """Has the blocks of the preempted requests that are offered next brought back before they are admitted.

        Args:
            share: What is offered. Where others are computed meanwhile it is made less: who is not ready waits, and so
                do those behind it.
            demand: What online requests take.
            now_s: Now.
            is_alone: Whether nobody is computed meanwhile.
        """
        if self.checkpoints is None or not share.offer:
            return
        kept_free = demand.blocks + share.headroom_blocks + count_growth(self._scheduler, share.admitted, share.tokens)
        backlog = self._scheduler.waiting.backlog
        next_ones = backlog.list_preempted(min(share.offer, MOST_AT_ONCE)) or [backlog.peek_next()]
        ready = self.checkpoints.prefetch(next_ones, kept_free, now_s)
        if ready < len(next_ones) or len(next_ones) == MOST_AT_ONCE:
            share.offer = 1 if is_alone and not ready else ready

    def begin_batch(self, output: SchedulerOutput, now_s: float) -> bool:
        """Has KV blocks copied while a batch is computed; True if it may be stopped for want of some."""
        if self.checkpoints is None:
            return False
        scheduler = self._scheduler
        burst_blocks, wanted_blocks = self.reserve.predict_burst(now_s), len(scheduler.running)
        if burst_blocks and scheduler.waiting.backlog and len(scheduler.running) < count_slots(scheduler):
            # It gets what is saved instead of being kept free.
            wanted_blocks += -(-scheduler.waiting.backlog.peek_next().num_tokens // scheduler.block_size)
        has_online = not all(map(is_offline, scheduler.running))
        pressure = Pressure(burst_blocks, wanted_blocks, has_online=has_online)
        return self.checkpoints.begin(output, self._list_offline, pressure, now_s)

    def _list_offline(self) -> list[Request]:
        return sorted(split_lanes(self._scheduler.running)[1], key=_arrival_time)

    def end_batch(self, batch: SchedulerOutput, output: ModelRunnerOutput, stop: StopNote | None) -> StopNote | None:
        """A batch is back. Returns what is known of its stop then, as `Checkpoints.end`."""
        if self.checkpoints is None or not batch.total_num_scheduled_tokens:
            return stop
        return self.checkpoints.end(read_copy_note(output), stop)
