from __future__ import annotations

import random
import tracemalloc
from dataclasses import dataclass
from itertools import groupby

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conserve.policy.prefix_order import PATH_BLOCKS, PrefixBacklog

MAX_BYPASSED = 3
PATHS = st.lists(st.integers(0, 2), max_size=6).map(tuple)


@dataclass
class Waiting:
    key: int
    path: tuple[int, ...]
    computed_tokens: int | None = None  # None if it has never been started


def count_shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class BacklogAgainstList(RuleBasedStateMachine):
    """The same calls on a backlog and on a plain list, searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.backlog: PrefixBacklog[str] = PrefixBacklog(MAX_BYPASSED)
        self.waiting: list[Waiting] = []
        self.last_path: tuple[int, ...] = ()
        self.bypassed = 0
        self.added = 0

    def find_started(self) -> list[Waiting]:
        return [one for one in self.waiting if one.computed_tokens is not None]

    def find_new(self) -> list[Waiting]:
        return [one for one in self.waiting if one.computed_tokens is None]

    def find_next(self) -> Waiting:
        started, new = self.find_started(), self.find_new()
        if started:
            return max(started, key=lambda one: (one.computed_tokens, self.waiting.index(one)))
        if not self.backlog.ordered or self.bypassed >= MAX_BYPASSED:
            return new[0]
        return max(new, key=lambda one: count_shared(one.path, self.last_path))  # max gives the first of equals

    def forget(self, one: Waiting) -> None:
        if one in self.find_new()[:1]:
            self.bypassed = 0
        self.waiting.remove(one)

    @rule(path=PATHS)
    def add(self, path: tuple[int, ...]) -> None:
        self.added += 1
        self.waiting.append(Waiting(self.added, path))
        self.backlog.add(self.added, f"request {self.added}", path)

    @rule(path=PATHS, computed_tokens=st.integers(0, 3))
    def preempt(self, path: tuple[int, ...], computed_tokens: int) -> None:
        self.added += 1
        self.waiting.append(Waiting(self.added, path, computed_tokens))
        self.backlog.add_front(self.added, f"request {self.added}", path, computed_tokens)

    @precondition(lambda self: self.waiting)
    @rule()
    def pop(self) -> None:
        expected = self.find_next()
        assert self.backlog.peek_next() == f"request {expected.key}"
        assert self.backlog.pop_next() == f"request {expected.key}"
        if expected.computed_tokens is None:
            self.bypassed += 1
        self.forget(expected)
        self.last_path = expected.path

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.waiting))
        assert self.backlog.remove(one.key) == f"request {one.key}"
        self.forget(one)

    @rule(ordered=st.booleans())
    def switch(self, ordered: bool) -> None:
        self.backlog.ordered = ordered

    @invariant()
    def holds_the_same(self) -> None:
        assert len(self.backlog) == len(self.waiting)
        in_order = self.find_started() + self.find_new()
        assert list(self.backlog) == [f"request {one.key}" for one in in_order]
        assert all(one.key in self.backlog for one in self.waiting)
        assert 0 not in self.backlog


test_backlog_does_what_a_searched_list_does = BacklogAgainstList.TestCase


def pop_all(backlog: PrefixBacklog[int]) -> list[int]:
    return [backlog.pop_next() for _ in range(len(backlog))]


def test_shuffled_groups_come_one_after_the_other() -> None:
    groups = [group for group in range(16) for _ in range(12)]
    random.Random(3).shuffle(groups)
    backlog: PrefixBacklog[int] = PrefixBacklog()
    for number, group in enumerate(groups):
        backlog.add(number, group, [f"system {group}", f"document {group}", f"question {number}"])
    popped = [group for group, _ in groupby(pop_all(backlog))]
    assert popped == list(dict.fromkeys(groups))  # each group once, in the order of its first request


def test_groups_within_a_group_stay_together() -> None:
    backlog: PrefixBacklog[int] = PrefixBacklog()
    for number, path in enumerate(["aax", "b", "aby", "aaz", "abw", "aa"]):
        backlog.add(number, number, path)
    assert pop_all(backlog) == [0, 3, 5, 2, 4, 1]


def test_blocks_after_the_first_difference_are_not_shared() -> None:
    backlog: PrefixBacklog[int] = PrefixBacklog()
    for number, path in enumerate(["axy", "abz", "aby"]):
        backlog.add(number, number, path)
    assert pop_all(backlog) == [0, 1, 2]


@pytest.mark.parametrize("ordered", [True, False])
def test_switch_turns_grouping_off(ordered: bool) -> None:
    backlog: PrefixBacklog[int] = PrefixBacklog(ordered=ordered)
    for number, path in enumerate(["ax", "b", "ay"]):
        backlog.add(number, number, path)
    assert pop_all(backlog) == ([0, 2, 1] if ordered else [0, 1, 2])


def test_a_stream_of_one_group_starves_nobody() -> None:
    backlog: PrefixBacklog[int] = PrefixBacklog(max_bypassed=10)
    backlog.add(0, 0, "a0")
    assert backlog.pop_next() == 0
    for number in (1, 2, 3):
        backlog.add(number, number, f"other {number}")
    popped = []
    for number in range(100, 140):
        backlog.add(number, number, "a0")
        popped.append(backlog.pop_next())
    # The first waits ten pops as the oldest; with it out, `a0` is no longer what was popped last, so the others follow.
    assert [popped.index(number) for number in (1, 2, 3)] == [10, 11, 12]


def test_preempted_come_first_and_those_with_most_work_before_the_rest() -> None:
    backlog: PrefixBacklog[int] = PrefixBacklog()
    backlog.add(0, 0, "a")
    for number, computed_tokens in ((1, 50), (2, 900), (3, 50)):
        backlog.add_front(number, number, "b", computed_tokens)
    assert [backlog.list_preempted(most) for most in (0, 2, 9)] == [[], [2, 3], [2, 3, 1]]
    assert pop_all(backlog) == [2, 3, 1, 0]


def test_only_the_first_blocks_count() -> None:
    shared = [*range(PATH_BLOCKS - 1)]
    backlog: PrefixBacklog[int] = PrefixBacklog()
    for number, path in enumerate([[*shared, 0, 1], [*shared, 0, 2], [*shared, 0, 1], [*shared, 1]]):
        backlog.add(number, number, path)
    assert pop_all(backlog) == [0, 1, 2, 3]


def test_wrong_keys_and_empty_backlogs_are_refused() -> None:
    backlog: PrefixBacklog[int] = PrefixBacklog()
    for take in (backlog.pop_next, backlog.peek_next):
        with pytest.raises(IndexError, match="no request"):
            take()
    with pytest.raises(KeyError):
        backlog.remove("unknown")
    backlog.add("new", 1, "a")
    backlog.add_front("preempted", 2, "a", 5)
    for key in ("new", "preempted"):
        with pytest.raises(ValueError, match=key):
            backlog.add(key, 3, "b")
        with pytest.raises(ValueError, match=key):
            backlog.add_front(key, 3, "b", 5)
    assert list(backlog) == [2, 1]


def test_clear_forgets_everything() -> None:
    backlog: PrefixBacklog[int] = PrefixBacklog()
    for number, path in enumerate(["ax", "ay"]):
        backlog.add(number, number, path)
    backlog.add_front(2, 2, "a", 1)
    backlog.pop_next()
    backlog.clear()
    assert (len(backlog), list(backlog), 0 in backlog) == (0, [], False)
    for number, path in enumerate(["b", "ax"]):
        backlog.add(number, number, path)
    assert pop_all(backlog) == [0, 1]  # by age: what was popped before is forgotten


def test_memory_is_for_what_is_shared_and_given_back() -> None:
    count = 1_000
    paths = [[(number, block) for block in range(PATH_BLOCKS)] for number in range(count)]
    backlog: PrefixBacklog[int] = PrefixBacklog()
    tracemalloc.start()
    try:
        for number, path in enumerate(paths):
            backlog.add(number, number, path)
        # A node for each block would take some 25,000 bytes for a path.
        assert tracemalloc.get_traced_memory()[0] < 3_000 * count
        pop_all(backlog)
        for number, path in enumerate(paths):  # each of these parts from the one before, and is gone at once
            backlog.add(number, number, paths[0][: number % PATH_BLOCKS] + path[number % PATH_BLOCKS :])
            backlog.pop_next()
        # Once empty, only the size that the tables have grown to is left.
        assert tracemalloc.get_traced_memory()[0] < 300 * count
    finally:
        tracemalloc.stop()


def test_removals_undo_the_partings_they_leave_empty() -> None:
    trunk = [*range(PATH_BLOCKS)]
    backlog: PrefixBacklog[int] = PrefixBacklog()
    tracemalloc.start()
    try:
        for number in range(200):
            backlog.add(number, number, trunk)
        before = tracemalloc.get_traced_memory()[0]
        for depth in range(1, PATH_BLOCKS):
            backlog.add("passing", 0, [*trunk[:depth], "else"])
            backlog.remove("passing")
        # A parting that stays would hold all 200 requests once more, 63 times.
        assert tracemalloc.get_traced_memory()[0] < before + 20_000
    finally:
        tracemalloc.stop()
