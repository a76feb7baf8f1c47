"""Copies KV blocks between a GPU and host memory. Written after the documentation of PyTorch; not run on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from conserve.engine.copier import Copier
from conserve.engine.copy_plan import CopyNote, CopyPlan

PIECE_BYTES: Final = 2**28
"""PyTorch rounds pinned memory up to a power of two, so it is taken in pieces that are nearly one."""
BUFFER_BYTES: Final = 2**26
"""GPU memory that blocks are gathered into, at most."""


@dataclass(frozen=True)
class _Sent:
    plan: CopyPlan
    begin: Any
    end: Any
    has_failed: bool


class StreamCopier(Copier):
    """A stream of its own copies between the KV cache and pinned host memory.

    Blocks are gathered into a buffer first, so that each slot is one transfer and not one for each layer. Nothing here
    waits for the GPU; a transfer that hangs there hangs the batch that waits for it, as any other work of a GPU does,
    until vLLM's own time limit of a batch.

    Args:
        blocks: The KV cache, by region: bytes of shape (blocks, layers, page).
        slots: Slots of host memory.
    """

    def __init__(self, blocks: Sequence[torch.Tensor], slots: int) -> None:
        super().__init__([_as_words(view) for view in blocks], slots)
        self._stream = torch.cuda.Stream()
        self._host = [_PinnedSlots(view, slots) for view in self._blocks]
        # With asynchronous scheduling another thread than the one that begins batches may take notes.
        self._sent_lock = threading.Lock()
        self._sent: list[_Sent] = []

    def submit(self, plan: CopyPlan) -> None:
        """Begins copies; returns at once."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        has_failed = False
        try:
            self._refuse_bad_slots(plan)
            # What was computed before is in the blocks that are saved, and may still be read from those loaded into.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                begin.record()
                self._copy(plan)
        except Exception as error:  # noqa: BLE001 - whatever it is, what was not copied is computed again
            has_failed = True
            self._fail(plan, error)
        # Also then: what is on the stream already has to be waited for.
        end.record(self._stream)
        with self._sent_lock:
            self._sent.append(_Sent(plan, begin, end, has_failed))

    def wait_for(self, job: int) -> None:
        """Has the current stream wait for copies; the calling thread does not wait."""
        with self._sent_lock:
            ends = [sent.end for sent in self._sent if sent.plan.job <= job]
        if ends:
            torch.cuda.current_stream().wait_event(ends[-1])

    def close(self) -> None:
        """Ends the copies."""
        self._stream.synchronize()

    def take_note(self) -> CopyNote:
        """What has become of the copies since the last note, but for failed loads."""
        with self._sent_lock:
            while self._sent and self._sent[0].end.query():
                sent = self._sent.pop(0)
                with self._lock:
                    if not sent.has_failed:
                        self._count(sent.plan, sent.begin.elapsed_time(sent.end) / 1e3)
                    self._done = sent.plan.job
        return super().take_note()

    def _copy(self, plan: CopyPlan) -> None:
        for memory, host in zip(self._blocks, self._host, strict=True):
            most = max(1, BUFFER_BYTES // (memory[0].numel() * memory.element_size()))
            _save(memory, host, plan.first_saves, most)
            for loads in _cut(plan.loads, most):
                arrived = torch.empty((len(loads), *memory.shape[1:]), dtype=memory.dtype, device=memory.device)
                for index, (slot, _) in enumerate(loads):
                    arrived[index].copy_(host[slot], non_blocking=True)
                memory.index_copy_(0, _send([block for _, block in loads], memory.device), arrived)
            _save(memory, host, plan.saves, most)


class _PinnedSlots:
    def __init__(self, memory: torch.Tensor, slots: int) -> None:
        shape = memory.shape[1:]
        self._per_piece = max(1, PIECE_BYTES // (memory[0].numel() * memory.element_size()))
        self._slots = slots
        self._pieces = [
            torch.empty((min(self._per_piece, slots - first), *shape), dtype=memory.dtype, pin_memory=True)
            for first in range(0, slots, self._per_piece)
        ]

    def __getitem__(self, slot: int) -> torch.Tensor:
        if not 0 <= slot < self._slots:
            raise IndexError(f"slot {slot} of {self._slots}")
        piece, index = divmod(slot, self._per_piece)
        return self._pieces[piece][index]


def _save(memory: torch.Tensor, host: _PinnedSlots, pairs: Sequence[tuple[int, int]], most: int) -> None:
    for saves in _cut(pairs, most):
        gathered = memory.index_select(0, _send([block for block, _ in saves], memory.device))
        for index, (_, slot) in enumerate(saves):
            host[slot].copy_(gathered[index], non_blocking=True)


def _send(numbers: list[int], device: torch.device) -> torch.Tensor:
    """Without waiting for the stream, as a copy from pageable memory does."""
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=True).to(device, non_blocking=True)


def _cut(pairs: Sequence[tuple[int, int]], most: int) -> Iterator[Sequence[tuple[int, int]]]:
    return (pairs[first : first + most] for first in range(0, len(pairs), most))


def _as_words(view: torch.Tensor) -> torch.Tensor:
    """The same bytes, eight at a time where they can be taken so: gathering single bytes is slow."""
    numbers = (view.shape[-1], view.storage_offset(), *view.stride()[:-1])
    return view.view(torch.int64) if all(number % 8 == 0 for number in numbers) else view
