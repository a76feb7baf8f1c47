from __future__ import annotations

from conserve.policy.allotment import JobShare
from conserve.policy.turns import ShareTurns


def test_turns_come_in_their_order_and_again() -> None:
    turns = ShareTurns([JobShare("a", 2), JobShare("b", 1), JobShare("a", 1)])
    taken = []
    for _ in range(8):
        assert turns.current is not None
        taken.append(turns.current)
        turns.take(turns.current.batch_id, 1)
    expected = [JobShare("a", 2), JobShare("a", 1), JobShare("b", 1), JobShare("a", 1)]
    assert taken == expected * 2


def test_an_empty_batch_is_passed_over() -> None:
    turns = ShareTurns([JobShare("a", 2), JobShare("b", 3), JobShare("a", 1)])
    turns.take("a", 1)
    turns.drop("a")
    assert turns.current == JobShare("b", 3)
    turns.take("b", 1)
    turns.drop("c")
    assert turns.current == JobShare("b", 2)
    turns.drop("b")
    assert turns.current is None
    turns.take("b", 1)
    turns.drop("b")
    assert turns.current is None


def test_what_was_taken_before_the_turns_changed_does_not_count() -> None:
    turns = ShareTurns([JobShare("new", 2), JobShare("none", 0)])
    turns.take("old", 2)
    assert turns.current == JobShare("new", 2)
    assert ShareTurns([JobShare("none", 0)]).current is None


def test_what_comes_before_the_current_turn_is_dropped_without_moving_it() -> None:
    turns = ShareTurns([JobShare("a", 1), JobShare("b", 3), JobShare("c", 1)])
    turns.take("a", 1)
    turns.take("b", 1)
    turns.drop("a")
    assert turns.current == JobShare("b", 2)
    turns.take("b", 2)
    assert turns.current == JobShare("c", 1)
