"""Copies KV blocks between a worker's KV cache and host memory while batches are computed.

Copies are made in the order in which they were planned, by one thread on a CPU, on one stream of its own on a GPU
(`stream_copier`). So a slot that is given to another block is read before it is written, and nobody has to wait for
anything but a batch that touches blocks which are being copied.
"""

from __future__ import annotations

import mmap
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import numpy as np
import structlog
import torch

from conserve.engine.copy_plan import CopyNote, CopyPlan

WAIT_TIMEOUT_S: Final = 10.0
"""A copy takes milliseconds; what has not been made after so long is given up."""
STUCK_TIMEOUT_S: Final = 30.0
"""The block that is just being copied cannot be given up: it might be written to when it has another owner."""
CLOSE_TIMEOUT_S: Final = 5.0
AHEAD_BYTES: Final = 128 * 2**20
"""Host memory that is got ready ahead of its use: a copy to new pages takes several times as long."""

_log = structlog.get_logger(__name__)


class Copier(ABC):
    """Makes copies.

    Args:
        blocks: The KV cache, by region: bytes of shape (blocks, layers, page).
        slots: Slots of host memory.
    """

    def __init__(self, blocks: Sequence[torch.Tensor], slots: int) -> None:
        self.slots = slots
        self._blocks = list(blocks)
        self._bad_slots: set[int] = set()
        self._lock = threading.Lock()
        self._done = 0
        self._copied_blocks = 0
        self._copied_s = self._waited_s = 0.0
        self._failed_slots: list[int] = []
        self._failed_blocks: list[int] = []

    @abstractmethod
    def submit(self, plan: CopyPlan) -> None:
        """Begins copies; returns at once."""

    @abstractmethod
    def wait_for(self, job: int) -> None:
        """What is computed from now on finds the copies up to this number made, or they have failed.

        Raises:
            TimeoutError: a block has been in the middle of its copy for a very long time.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the copies, those first that were begun."""

    def take_failed_blocks(self) -> tuple[int, ...]:
        """KV blocks whose load has failed, since the last call."""
        with self._lock:
            failed, self._failed_blocks = tuple(self._failed_blocks), []
        return failed

    def take_note(self) -> CopyNote:
        """What has become of the copies since the last note, but for failed loads."""
        with self._lock:
            note = CopyNote(
                done=self._done,
                copied_blocks=self._copied_blocks,
                copied_s=self._copied_s,
                waited_s=self._waited_s,
                failed_slots=tuple(self._failed_slots),
            )
            self._copied_blocks = 0
            self._copied_s = self._waited_s = 0.0
            self._failed_slots = []
        return note

    def _fail(self, plan: CopyPlan, error: BaseException) -> None:
        with self._lock:
            self._mark_failed(plan)
        _warn(plan, error)

    def _mark_failed(self, plan: CopyPlan) -> None:
        """To be called with the lock."""
        slots = [slot for _, slot in plan.all_saves]
        self._bad_slots.update(slots)
        self._failed_slots += slots
        self._failed_blocks += [block for _, block in plan.loads]

    def _refuse_bad_slots(self, plan: CopyPlan) -> None:
        """A load from a bad slot fails; a save makes it good again."""
        with self._lock:
            bad = [slot for slot, _ in plan.loads if slot in self._bad_slots]
            self._bad_slots.difference_update(slot for _, slot in plan.all_saves)
        if bad:
            raise RuntimeError(f"slots {bad} hold nothing: their save has failed")

    def _count(self, plan: CopyPlan, seconds: float) -> None:
        """To be called with the lock."""
        self._copied_blocks += len(plan.all_saves) + len(plan.loads)
        self._copied_s += seconds


def _warn(plan: CopyPlan, error: BaseException) -> None:
    _log.warning("KV blocks could not be copied and are computed again", error=repr(error), job=plan.job)


class _GivenUpError(Exception):
    """Nobody waits for these copies any more, and their blocks may have other owners."""


class ThreadCopier(Copier):
    """On a CPU: a thread copies. NumPy lets go of the interpreter's lock meanwhile, and takes no other core."""

    def __init__(self, blocks: Sequence[torch.Tensor], slots: int) -> None:
        super().__init__(blocks, slots)
        self._memory = [view.numpy() for view in self._blocks]
        # Pages come into being when they are first written to.
        self._host = [np.empty((slots, *view.shape[1:]), np.uint8) for view in self._memory]
        self._ahead_slots = max(1, AHEAD_BYTES // sum(view[0].size for view in self._memory))
        self._used_slots = self._ready_slots = 0
        self._plans: queue.SimpleQueue[CopyPlan | None] = queue.SimpleQueue()
        self._unfinished: dict[int, CopyPlan] = {}
        self._is_given_up = False
        self._copying = threading.Lock()
        self._is_done = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._run, name="kv-copier", daemon=True)
        self._thread.start()

    def submit(self, plan: CopyPlan) -> None:
        """Begins copies; returns at once."""
        with self._lock:
            self._unfinished[plan.job] = plan
        self._plans.put(plan)

    def wait_for(self, job: int) -> None:
        """Waits for copies, and gives them up after a long time."""
        began_s = time.monotonic()
        with self._is_done:
            if self._done >= job:
                return
            is_done = self._is_done.wait_for(lambda: self._done >= job, WAIT_TIMEOUT_S)
            self._waited_s += time.monotonic() - began_s
        if not is_done:
            self._give_up()

    def close(self) -> None:
        """Ends the copies."""
        self._plans.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _give_up(self) -> None:
        """Copies that are not made by now have failed, and so do all later ones."""
        self._is_given_up = True
        if not self._copying.acquire(timeout=STUCK_TIMEOUT_S):
            raise TimeoutError(f"a KV block has been copied for {STUCK_TIMEOUT_S:g} s")
        self._copying.release()
        with self._lock:
            unfinished, self._unfinished = self._unfinished, {}
            self._done = max([self._done, *unfinished])
            for plan in unfinished.values():
                self._mark_failed(plan)
        error = TimeoutError(f"copies of KV blocks have not been made within {WAIT_TIMEOUT_S:g} s")
        for plan in unfinished.values():
            _warn(plan, error)

    def _run(self) -> None:
        while (plan := self._take_plan()) is not None:
            began_s = time.monotonic()
            error: Exception | None = None
            try:
                self._refuse_bad_slots(plan)
                self._copy(plan)
            except Exception as problem:  # noqa: BLE001 - whatever it is, what was not copied is computed again
                error = problem
            # All at once: who waits must find what has failed when the copy is over, or when it was given up.
            with self._is_done:
                if self._unfinished.pop(plan.job, None) is None:
                    continue  # It was given up, and counted as failed.
                if error is None:
                    self._count(plan, time.monotonic() - began_s)
                else:
                    self._mark_failed(plan)
                self._done = max(self._done, plan.job)
                self._is_done.notify_all()
            if error is not None:
                _warn(plan, error)

    def _take_plan(self) -> CopyPlan | None:
        """The next plan, once there is one; until then the slots that come next are got ready."""
        while self._ready_slots < min(self.slots, self._used_slots + self._ahead_slots):
            try:
                return self._plans.get_nowait()
            except queue.Empty:
                for host in self._host:
                    host[self._ready_slots].reshape(-1)[:: mmap.PAGESIZE] = 0
                self._ready_slots += 1
        return self._plans.get()

    def _copy(self, plan: CopyPlan) -> None:
        # Slots are given out from the first one on. Those above have never been written to.
        self._used_slots = max([self._used_slots, *(slot + 1 for _, slot in plan.all_saves)])
        self._ready_slots = max(self._ready_slots, self._used_slots)
        self._save(plan.first_saves)
        for slot, block in plan.loads:
            for memory, host in zip(self._memory, self._host, strict=True):
                self._copy_block(memory[block], host[slot])
        self._save(plan.saves)

    def _save(self, saves: Sequence[tuple[int, int]]) -> None:
        for block, slot in saves:
            for memory, host in zip(self._memory, self._host, strict=True):
                self._copy_block(host[slot], memory[block])

    def _copy_block(self, target: np.ndarray, source: np.ndarray) -> None:
        with self._copying:
            if self._is_given_up:
                raise _GivenUpError
            np.copyto(target, source)


def open_copier(blocks: Sequence[torch.Tensor], slots: int) -> Copier:
    """The copier of a worker, for where its KV cache is.

    Args:
        blocks: The KV cache, by region: bytes of shape (blocks, layers, page).
        slots: Slots of host memory.

    Raises:
        RuntimeError: there is not so much host memory; names the setting.
    """
    from conserve.engine.stream_copier import StreamCopier  # It is a `Copier`, so it imports this module.

    try:
        return StreamCopier(blocks, slots) if blocks[0].is_cuda else ThreadCopier(blocks, slots)
    except (MemoryError, RuntimeError) as error:
        gib = slots * sum(view[0].numel() for view in blocks) / 2**30
        raise RuntimeError(
            f"engine.host_kv_gib: {gib:.1f} GiB of host memory for KV blocks of a worker could not be had ({error}): "
            "set less, or 0 for no checkpoints"
        ) from error
