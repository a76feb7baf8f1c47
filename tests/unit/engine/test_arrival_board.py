"""Announcements of online requests, whatever becomes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from conserve.engine.arrival_board import SLOTS, STALE_S, ArrivalBoard, Pending


@pytest.fixture
def front() -> Iterator[ArrivalBoard]:
    board = ArrivalBoard.create()
    yield board
    board.remove()


@pytest.fixture
def engine(front: ArrivalBoard) -> ArrivalBoard:
    """The same board, as another process maps it."""
    return ArrivalBoard(front.path)


def test_what_is_announced_is_pending_until_it_arrives(front: ArrivalBoard, engine: ArrivalBoard) -> None:
    assert engine.pending() is None
    first = front.announce(1.0, due_s=5.0)
    second = front.announce(2.0, due_s=4.0)
    assert engine.announced == second
    assert engine.pending() == Pending(due_s=4.0, announced_s=1.0)
    engine.settle(second)
    assert engine.pending() == Pending(due_s=5.0, announced_s=1.0)
    engine.settle(first)
    assert engine.pending() is None


def test_one_announcement_may_become_several_requests_or_none(front: ArrivalBoard, engine: ArrivalBoard) -> None:
    number = front.announce(1.0, due_s=5.0)
    for _ in range(4):
        engine.settle(number)
    refused = front.announce(2.0, due_s=5.0)
    assert engine.pending() is not None
    front.retire(refused)
    assert engine.pending() is None
    following = front.announce(3.0, due_s=math.inf)
    assert engine.pending() == Pending(math.inf, 3.0)
    engine.settle(number)
    assert engine.pending() is not None
    engine.settle(following)
    assert engine.pending() is None


def test_what_does_not_come_is_waited_for_no_longer(front: ArrivalBoard, engine: ArrivalBoard) -> None:
    front.announce(1.0, due_s=5.0)
    gone = front.announce(1.0, due_s=5.0)
    late = front.announce(2.0, due_s=5.0)
    front.retire(gone)
    assert engine.settle_overdue(announced_before_s=1.5) == 1
    assert engine.pending() == Pending(5.0, 2.0)
    engine.settle(late)
    assert engine.settle_overdue(announced_before_s=9.0) == 0


def test_a_client_cannot_settle_what_was_not_announced(front: ArrivalBoard, engine: ArrivalBoard) -> None:
    number = front.announce(1.0, due_s=5.0)
    for forged in (0, -1, number + 1, number + SLOTS, 10**12):
        engine.settle(forged)
    assert engine.pending() is not None
    engine.settle(number)
    assert front.announce(2.0, due_s=5.0) > number
    assert engine.pending() is not None


def test_slots_are_used_again(front: ArrivalBoard, engine: ArrivalBoard) -> None:
    for turn in range(3 * SLOTS):
        engine.settle(front.announce(float(turn), due_s=5.0))
    assert engine.pending() is None
    numbers = [front.announce(5_000.0, due_s=5_005.0) for _ in range(SLOTS)]
    assert len(set(numbers)) == SLOTS
    assert front.announce(5_000.0, due_s=5_005.0) == 0, "there is no room for another one"
    front.retire(0)
    assert front.announce(5_001.0 + STALE_S, due_s=5_020.0) > max(numbers), "nobody has looked for long"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "board").write_bytes(b"0" * 10)
    with pytest.raises(ValueError, match="board: is no board of this version"):
        ArrivalBoard(tmp_path / "board")


def test_the_verdict_of_the_first_rank_is_there_for_others(front: ArrivalBoard, engine: ArrivalBoard) -> None:
    assert front.read_verdict(5.0) is None
    front.publish_verdict(5.0, stops=False)
    assert engine.read_verdict(5.0) is False
    assert engine.read_verdict(6.0) is None
    front.publish_verdict(6.0, stops=True)
    assert engine.read_verdict(6.0) is True
    front.publish_verdict(100.0, stops=False)
    assert engine.read_verdict(6.0) is True, "whoever is late still learns of the stop"
    assert engine.read_verdict(5.0) is False
