"""Copies between a KV cache and host memory, on a CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from conserve.engine import copier as copier_module
from conserve.engine.copier import Copier, ThreadCopier, open_copier
from conserve.engine.copy_plan import CopyPlan
from conserve.engine.kv_memory import KvRegion, view_blocks

BLOCKS, LAYERS, PAGE = 6, 3, 32


def make_memory(*, block_outermost: bool) -> tuple[torch.Tensor, list[KvRegion]]:
    """A KV cache whose bytes all differ from their neighbours', in one of vLLM's two layouts."""
    allocation = torch.arange(BLOCKS * LAYERS * PAGE, dtype=torch.int64).remainder(251).to(torch.uint8)
    strides = (PAGE, LAYERS * PAGE) if block_outermost else (BLOCKS * PAGE, PAGE)
    return allocation, [KvRegion(LAYERS, PAGE, 0, *strides)]


@pytest.fixture(params=[False, True], ids=["layers outermost", "blocks outermost"])
def memory(request: pytest.FixtureRequest) -> list[torch.Tensor]:
    allocation, regions = make_memory(block_outermost=request.param)
    return view_blocks(allocation, regions, BLOCKS)


@pytest.fixture
def copier(memory: list[torch.Tensor]) -> Iterator[Copier]:
    copier = open_copier(memory, slots=4)
    yield copier
    copier.close()


def test_a_block_comes_back_as_it_was(copier: Copier, memory: list[torch.Tensor]) -> None:
    before = [memory[0][block].clone() for block in range(BLOCKS)]
    assert not torch.equal(before[1], before[4])
    copier.submit(CopyPlan(job=1, saves=((1, 3), (4, 0))))
    copier.wait_for(1)
    memory[0][1].zero_()
    copier.submit(CopyPlan(job=2, loads=((3, 5), (0, 1))))
    copier.wait_for(2)
    assert torch.equal(memory[0][5], before[1])
    assert torch.equal(memory[0][1], before[4])
    for block in (0, 2, 3, 4):
        assert torch.equal(memory[0][block], before[block])
    note = copier.take_note()
    assert (note.done, note.copied_blocks, note.failed_slots) == (2, 4, ())
    assert note.copied_s > 0
    assert copier.take_note().copied_blocks == 0


def test_slots_are_got_ready_ahead_and_what_they_hold_stays(
    memory: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier_module, "AHEAD_BYTES", 2 * LAYERS * PAGE)
    copier = ThreadCopier(memory, slots=4)

    def wait_until_ready(slots: int) -> None:
        until_s = time.monotonic() + 60
        while copier._ready_slots != slots:
            assert time.monotonic() < until_s, copier._ready_slots
            time.sleep(0.001)

    try:
        wait_until_ready(2)
        before = memory[0][1].clone()
        assert before[0].all(), "zeros would not show"
        for job, slot, ready in ((1, 0, 3), (2, 3, 4)):
            copier.submit(CopyPlan(job=job, saves=((1, slot),)))
            copier.wait_for(job)
            wait_until_ready(ready)
        copier.submit(CopyPlan(job=3, loads=((0, 2), (3, 5))))
        copier.wait_for(3)
        assert all(torch.equal(memory[0][block], before) for block in (2, 5))
    finally:
        copier.close()


def test_a_block_can_be_saved_before_another_one_is_loaded_into_it(copier: Copier, memory: list[torch.Tensor]) -> None:
    before = [memory[0][block].clone() for block in range(BLOCKS)]
    copier.submit(CopyPlan(job=1, saves=((1, 3),)))
    copier.submit(CopyPlan(job=2, first_saves=((4, 0),), loads=((3, 4),), saves=((4, 1),)))
    copier.submit(CopyPlan(job=3, loads=((0, 2), (1, 5))))
    copier.wait_for(3)
    assert torch.equal(memory[0][4], before[1])
    assert torch.equal(memory[0][2], before[4])
    assert torch.equal(memory[0][5], before[1])
    assert copier.take_note().copied_blocks == 6


def test_copies_are_made_in_their_order(copier: Copier, memory: list[torch.Tensor]) -> None:
    before = memory[0][0].clone()
    # A slot is read before it is written to for another block, however long the first copies take.
    for number in range(1, 200):
        copier.submit(CopyPlan(job=2 * number - 1, saves=((0, 1),)))
        copier.submit(CopyPlan(job=2 * number, saves=((2, 1),), loads=((1, 5),)))
    copier.wait_for(398)
    assert torch.equal(memory[0][5], before)


def test_a_copy_that_fails_says_which_blocks_and_slots(
    copier: Copier, memory: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(copier_module.np, "copyto", fail)
        copier.submit(CopyPlan(job=1, saves=((1, 3),)))
        copier.wait_for(1)
    assert copier.take_failed_blocks() == ()
    # What was not saved cannot come back, although the copy itself would work now.
    copier.submit(CopyPlan(job=2, loads=((3, 5),)))
    copier.wait_for(2)
    assert copier.take_failed_blocks() == (5,)
    assert copier.take_note().failed_slots == (3,)
    copier.submit(CopyPlan(job=3, saves=((1, 3),)))
    copier.submit(CopyPlan(job=4, loads=((3, 5),)))
    copier.wait_for(4)
    assert copier.take_failed_blocks() == ()
    assert torch.equal(memory[0][5], memory[0][1])


def test_copies_that_take_too_long_are_given_up(memory: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    copier = ThreadCopier(memory, slots=4)
    copies: list[float] = []

    def copy_slowly(target: np.ndarray, source: np.ndarray) -> None:
        copies.append(time.monotonic())
        time.sleep(0.05)

    with monkeypatch.context() as patch:
        patch.setattr(copier_module, "WAIT_TIMEOUT_S", 0.1)
        patch.setattr(copier_module.np, "copyto", copy_slowly)
        running = tuple((number % 4, number % 5) for number in range(40))
        copier.submit(CopyPlan(job=1, saves=((0, 1),), loads=running))
        copier.submit(CopyPlan(job=2, saves=((0, 2), (0, 3)), loads=((3, 5),)))
        copier.wait_for(2)
        given_up_s = time.monotonic()
        assert copier.take_failed_blocks() == (*(block for _, block in running), 5)
        note = copier.take_note()
        assert (note.done, note.copied_blocks, note.failed_slots) == (2, 0, (1, 2, 3))
        # Blocks may have other owners now.
        time.sleep(0.2)
        assert copies
        assert max(copies) < given_up_s
    copier.submit(CopyPlan(job=3, loads=((3, 5),)))
    copier.wait_for(3)
    assert copier.take_failed_blocks() == (5,), "nothing is copied any more"
    copier.close()


def test_waiting_for_a_block_that_is_being_copied_has_an_end(
    memory: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    copier = ThreadCopier(memory, slots=2)
    stuck = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(copier_module, "WAIT_TIMEOUT_S", 0.05)
        patch.setattr(copier_module, "STUCK_TIMEOUT_S", 0.05)
        patch.setattr(copier_module.np, "copyto", lambda *args: stuck.wait(60))
        copier.submit(CopyPlan(job=1, saves=((0, 0),)))
        with pytest.raises(TimeoutError, match="KV block"):
            copier.wait_for(1)
        stuck.set()
        copier.close()


def test_failed_copies_say_nothing_about_the_rate(copier: Copier) -> None:
    copier.submit(CopyPlan(job=1, loads=((99, 1),)))
    copier.wait_for(1)
    assert copier.take_failed_blocks() == (1,)
    note = copier.take_note()
    assert (note.copied_blocks, note.copied_s) == (0, 0.0)


def test_too_much_host_memory_is_refused_by_the_name_of_the_setting(
    memory: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> np.ndarray:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(copier_module.np, "empty", refuse)
    with pytest.raises(RuntimeError, match=r"engine\.host_kv_gib.*Unable to allocate.*set less, or 0"):
        open_copier(memory, slots=2)
