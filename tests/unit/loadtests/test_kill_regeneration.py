"""What the kill runs say was generated again."""

from __future__ import annotations

from loadtests.killing.regeneration import read_log


def test_a_single_attempt_generates_nothing_again() -> None:
    found = read_log(["a 1.1 0 8", "b 1.2 0 8", "a 1.1 8 8"])
    assert (found.again, found.continued) == ([], 0)


def test_an_attempt_generates_again_what_others_had_behind_its_beginning() -> None:
    found = read_log(["a 1.1 0 8", "a 1.1 8 8", "a 1.1 16 8", "a 2.1 16 8", "a 2.1 24 8", "a 3.7 0 8"])
    assert (found.again, found.continued) == ([8, 32], 1)
    assert found.count_over(8) == 1


def test_attempts_at_the_same_time_are_told_apart() -> None:
    found = read_log(["a 1.1 0 8", "a 2.1 8 8", "a 1.1 8 8", "a 2.1 16 4"])
    assert (found.again, found.continued) == ([0], 1)
