"""The scheduler's side of checkpoints: which blocks are in host memory, which go there, which come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from conserve.engine.copy_plan import CopyNote, CopyPlan, attach_copies
from conserve.engine.host_pool import HostPool
from conserve.engine.kv_memory import count_rank_bytes, count_slots
from conserve.engine.landings import Landings
from conserve.engine.options import SchedulerOptions
from conserve.engine.page import Counters
from conserve.engine.saving import Pressure, Saving
from conserve.engine.step_plan import StopNote
from conserve.engine.vllm_blocks_compat import (
    BlocksTaken,
    explain_uncopyable,
    find_block,
    is_restorable,
    list_admitted,
    list_blocks_taken,
    list_hashes,
    reuse_last,
)
from conserve.engine.vllm_compat import Request, Scheduler, SchedulerOutput, count_freed_blocks, look_up_admission
from conserve.policy.preemption import PLENTY_SHARE

_log = structlog.get_logger(__name__)

MOST_LAST_BLOCKS = 1
"""So many full blocks of a request that are not saved yet are copied when it is preempted."""
MOST_FAILURES = 5
"""After so many batches in a row whose copies have failed there are no more."""


@dataclass
class _InFlight:
    """A batch that is not back yet.

    Attributes:
        number: Its number.
        tokens: By request.
        waits: Whether it waits for copies.
        copied: As in `BlocksTaken`.
    """

    number: int
    tokens: Mapping[str, int]
    waits: bool = False
    copied: Mapping[int, int] = field(default_factory=dict)


class Checkpoints:
    """Copies KV blocks of offline requests to host memory, and back before they go on.

    Args:
        scheduler: vLLM's.
        slots: Blocks that host memory can hold.
        block_bytes: Of one block, on all workers.
        copy_share: Part of the time that copies may take.
        counters: Where to count.

    Attributes:
        enabled: Whether they are wanted.
    """

    def __init__(
        self, scheduler: Scheduler, slots: int, block_bytes: int, copy_share: float, counters: Counters
    ) -> None:
        self.enabled = True
        self._scheduler = scheduler
        self._pool = HostPool(slots)
        self._landings = Landings(scheduler, self._pool, counters)
        self._saving = Saving(scheduler, self._pool, block_bytes, copy_share, counters)
        self._counters = counters
        self._ranks = int(scheduler.vllm_config.parallel_config.tensor_parallel_size)
        self._in_flight: deque[_InFlight] = deque()
        self._batches = 0
        # Who has begun or gone on with a batch that has not come to its end: number of the batch, by request.
        self._unproved: dict[str, int] = {}
        self._preempted: set[str] = set()
        self._last_saves: list[tuple[int, int]] = []
        self._last_blocks: list[Any] = []
        # Number of the latest copy of each KV block.
        self._saved_by: dict[int, int] = {}
        self._loaded_by: dict[int, int] = {}
        self._job = 0
        self._may_lack = False
        self._save_failures = self._load_failures = 0
        self._is_broken = False

    @property
    def is_on(self) -> bool:
        """Whether blocks are copied."""
        return self.enabled and not self._is_broken

    # What is kept.

    def count_saved_blocks(self, request: Request) -> int:
        """Leading blocks of a request that come back by a copy if it is preempted."""
        return self._pool.count_saved(request.request_id) if self.is_on else 0

    def count_saved_of(self, offline: Iterable[Request]) -> int:
        """KV blocks of running offline requests that can be given up at the cost of a copy.

        Only blocks that its preemption makes free; and what is not saved of a request counts against it, as it is lost.
        """
        if not self.is_on:
            return 0
        size, total = int(self._scheduler.block_size), 0
        for request in offline:
            if saved := self._pool.count_saved(request.request_id):
                blocks = request.num_computed_tokens // size
                saved = min(saved, blocks, self._saving.count_freed_blocks(request.request_id))
                total += max(0, saved - (blocks - saved))
        return total

    def note_preempted(self, request: Request, now_s: float, *, for_blocks: bool) -> None:
        """To be called before an offline request gives its blocks up.

        Args:
            request: It runs.
            now_s: Now.
            for_blocks: Whether others want them, and not its slot.
        """
        if self.is_on:
            self._save_end(request, is_lost=for_blocks)
        if self._pool.count_saved(request.request_id) or self._pool.find_tail(request.request_id):
            self._preempted.add(request.request_id)
        self._saving.forget([request.request_id])
        pool = self._scheduler.kv_cache_manager.block_pool
        if for_blocks or pool.get_num_free_blocks() < PLENTY_SHARE * pool.num_gpu_blocks:
            self._saving.losses.observe(now_s, count_freed_blocks(self._scheduler, request))

    def note_freed(self) -> None:
        """To be called when a preempted request has given its blocks up."""
        for block in self._last_blocks:
            # Who gets it has to wait until it is copied.
            reuse_last(self._scheduler, block)
        self._last_blocks.clear()

    def _save_end(self, request: Request, *, is_lost: bool) -> None:
        """Has the last block copied, which is not full, and one before it that is not saved yet.

        If the blocks are lost and more of them are not saved, what comes after those is of no use.
        """
        if not is_restorable(request):
            return
        request_id, size = request.request_id, int(self._scheduler.block_size)
        blocks, tokens = divmod(self._count_done_tokens(request), size)
        hashes = list_hashes(request, blocks)
        saved = self._pool.join(request_id, hashes)
        if is_lost and saved < blocks:
            if blocks - saved > MOST_LAST_BLOCKS or not self._pool.free_slots:
                return
            self._save_last(request, saved, self._pool.add(request_id, hashes[saved]))
        if tokens and self._pool.has_room_for_tail(request_id):
            self._save_last(request, blocks, self._pool.add_tail(request_id, blocks, tokens))

    def _save_last(self, request: Request, number: int, slot: int) -> None:
        block = find_block(self._scheduler, request, number)
        self._last_saves.append((block.block_id, slot))
        self._last_blocks.append(block)

    def forget(self) -> None:
        """What is in host memory is worth nothing any more: the model has changed, say."""
        self.release_landed()
        self._last_saves.clear()
        self._pool.clear()
        self._counters.host_blocks = 0

    # What comes back.

    def prefetch(self, requests: Sequence[Request], kept_free: int, now_s: float) -> int:
        """Has the blocks of those who go on next brought back, as many as come with one batch.

        Args:
            requests: They wait, in their order.
            kept_free: KV blocks that others need.
            now_s: Now.

        Returns:
            How many of the first ones have nothing to wait for.
        """
        if not self.is_on:
            return len(requests)
        ready = 0
        for number, request in enumerate(requests):
            if number and self._landings.unsent_blocks >= self._saving.piece_blocks:
                break
            state = self._landings.prefetch(request, kept_free, now_s, is_first=number == 0)
            if state == "no room":
                break
            ready += state == "ready" and ready == number
            # Of what they take, those that have not got it yet.
            kept_free += look_up_admission(self._scheduler, request).blocks
        return ready

    def extend_hit(self, request: Request, hit: Any) -> Any:
        """What a waiting request finds, as `Landings.extend_hit`."""
        return self._landings.extend_hit(request, hit)

    def release_gone(self, request_ids: Collection[str]) -> None:
        """Lets go of what is kept for requests that have come to their end."""
        self._landings.forget(request_ids)
        self._saving.forget(request_ids)
        self._preempted.difference_update(request_ids)
        for request_id in request_ids:
            self._unproved.pop(request_id, None)
            self._pool.release(request_id)
        self._counters.host_blocks = self._pool.used_slots

    def release_landed(self) -> bool:
        """Gives back what is held for requests that wait, for others need the room; False if there is nothing."""
        return self._landings.release()

    # Batches.

    def begin(
        self,
        output: SchedulerOutput,
        list_offline: Callable[[], Sequence[Request]],
        pressure: Pressure,
        now_s: float,
    ) -> bool:
        """A batch was scheduled: tells the workers what to copy when it begins, and what to wait for.

        Args:
            output: The batch, which may be empty.
            list_offline: Gives the running offline requests, the oldest first.
            pressure: What blocks will be wanted for.
            now_s: Now.

        Returns:
            Whether it may be stopped because blocks have not come back.
        """
        self._batches += 1
        batch = _InFlight(self._batches, output.num_scheduled_tokens)
        if output.total_num_scheduled_tokens > 0:
            # First: what it is to compute is not there yet.
            self._in_flight.append(batch)
        for request_id in list_admitted(output):
            self._unproved[request_id] = batch.number
            self._preempted.discard(request_id)
        job = self._job + 1
        last, self._last_saves = self._last_saves, []
        taken = BlocksTaken([], [], {})
        if last or self._saved_by or self._loaded_by or self._landings.blocks:
            taken = list_blocks_taken(output, int(self._scheduler.block_size))
        loads = self._landings.take_loads(self._saving.piece_blocks, {*taken.found, *taken.new}, job)
        self._landings.take_up(output.num_scheduled_tokens, now_s)
        self._saving.charge(len(loads) + len(last))
        self._counters.saved_blocks += len(last)
        saves: list[tuple[int, int]] = []
        if self.is_on:
            saves = self._saving.choose(list_offline, self._count_done_tokens, pressure, now_s)
            self._counters.host_blocks = self._pool.used_slots
        if saves or loads or last:
            self._job = job
            self._saved_by |= dict.fromkeys((block for block, _ in (*last, *saves)), job)
            self._loaded_by |= dict.fromkeys((block for _, block in loads), job)
        wait_for = self._find_fence(taken)
        if (is_job := self._job == job) or wait_for:
            plan = CopyPlan(job if is_job else 0, tuple(saves), tuple(loads), wait_for, first_saves=tuple(last))
            attach_copies(output, plan)
        batch.waits = wait_for > 0
        batch.copied = taken.copied
        self._may_lack = self._may_lack or batch.waits
        return self._may_lack

    def end(self, note: CopyNote | None, stop: StopNote | None) -> StopNote | None:
        """The oldest batch in flight is back.

        Args:
            note: What the workers have to say about copies.
            stop: That it was stopped.

        Returns:
            That it was stopped, with all KV blocks that do not hold what they should for copies that have failed.
        """
        batch = self._in_flight.popleft()
        if stop is None:
            # Of one that has begun anew since, this batch proves nothing.
            proved = [one for one, since in self._unproved.items() if since <= batch.number and one in batch.tokens]
            for request_id in proved:
                del self._unproved[request_id]
                if request_id not in self._preempted:
                    self._pool.drop_tail(request_id)
        if stop is None or not stop.is_void:
            # It says so itself if blocks have not come back, until then; a void batch does not look.
            self._may_lack = any(later.waits for later in self._in_flight)
            if batch.waits:
                self._load_failures = self._load_failures + 1 if stop is not None and stop.failed_blocks else 0
        if stop is not None and stop.failed_blocks:
            self._counters.failed_copies += len(stop.failed_blocks)
            # The batch that was stopped gives up all that it has found of them.
            self.release_landed()
            self._pool.lose(self._landings.find_origins(stop.failed_blocks))
            batches = (batch, *self._in_flight)
            copies = [each.copied[block] for block in stop.failed_blocks for each in batches if block in each.copied]
            stop = replace(stop, failed_blocks=(*stop.failed_blocks, *copies))
        if note is not None:
            self._take_note(note)
        if max(self._save_failures, self._load_failures) >= MOST_FAILURES and not self._is_broken:
            _log.error("KV blocks are copied no more: preempted requests are computed again", failures=MOST_FAILURES)
            self._is_broken = True
            self.forget()
        return stop

    def _take_note(self, note: CopyNote) -> None:
        counters = self._counters
        counters.copied_blocks += note.copied_blocks
        counters.copy_s += note.copied_s
        counters.copy_wait_s += note.waited_s
        counters.failed_copies += len(note.failed_slots)
        self._landings.done_job = note.done
        if note.failed_slots:
            self._save_failures += 1
            self._pool.lose(set(note.failed_slots))
        elif note.copied_blocks:
            self._save_failures = 0
        if note.copied_blocks:
            self._saving.note_copied(note.copied_blocks, note.copied_s)
        if self._ranks == 1 and self._saved_by:
            # Of several workers this is what one of them has done. Loads stay: who finds their blocks has to be told
            # if they have failed.
            self._saved_by = {block: job for block, job in self._saved_by.items() if job > note.done}

    def _find_fence(self, taken: BlocksTaken) -> int:
        """The last copy that a batch has to wait for: who writes to a block waits for both, who reads it for loads."""
        jobs = [self._loaded_by.get(block, 0) for block in (*taken.found, *taken.new)]
        jobs += [self._saved_by.get(block, 0) for block in taken.new]
        wait_for = max(jobs, default=0)
        if wait_for:
            self._saved_by = {block: job for block, job in self._saved_by.items() if job > wait_for}
            self._loaded_by = {block: job for block, job in self._loaded_by.items() if job > wait_for}
        return wait_for

    def _count_done_tokens(self, request: Request) -> int:
        """Leading tokens of a request whose KV is there for sure.

        Those of batches in flight may be stopped yet. And what a request has found in the prefix cache may be what
        another one computes in the same batch, or in one before it: it is there once a batch with the request has come
        to its end.
        """
        if request.request_id in self._unproved:
            return 0
        waiting = sum(batch.tokens.get(request.request_id, 0) for batch in self._in_flight)
        # What was void behind a stopped batch is taken back already, and still in flight.
        return max(0, int(request.num_computed_tokens) - waiting)


def create_checkpoints(
    scheduler: Scheduler, options: SchedulerOptions, counters: Counters, *, can_stop: bool
) -> Checkpoints | None:
    """The checkpoints of an engine; None without, for a reason that is in the log.

    Args:
        scheduler: vLLM's.
        options: What the operator wants.
        counters: Where to count.
        can_stop: Whether a batch can be stopped, which is how a copy that has failed is made good.

    Raises:
        ValueError: the host memory is too little for a single block; names the setting.
    """
    if not options.host_kv_bytes:
        return None
    reason = explain_uncopyable(scheduler) if can_stop else "passes cannot be stopped"
    if reason is not None:
        _log.warning("preempted requests are computed again", reason=reason)
        return None
    ranks = scheduler.vllm_config.parallel_config.tensor_parallel_size
    slots = count_slots(options.host_kv_bytes, scheduler.kv_cache_config, ranks)
    block_bytes = ranks * count_rank_bytes(scheduler.kv_cache_config)
    if not slots:
        raise ValueError(
            f"engine.host_kv_gib: {options.host_kv_bytes / 2**30:.4f} GiB hold no KV block, which takes "
            f"{block_bytes / 2**30:.4f} GiB: set more, or 0 for no checkpoints"
        )
    counters.host_slots = slots
    counters.host_block_bytes = block_bytes
    counters.host_block_tokens = scheduler.block_size
    counters.host_kv_bytes = options.host_kv_bytes
    return Checkpoints(scheduler, slots, block_bytes, options.host_copy_share, counters)
