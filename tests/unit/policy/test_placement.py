from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.placement import Homes, Placed, Room, place

Needs = list[tuple[str, int]]


def counts_of(placed: Placed) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for name, pieces in placed.pieces.items():
        for batch_id, count in pieces:
            counts[batch_id, name] += count
    return counts


def totals_of(placed: Placed, index: int) -> Counter[str]:
    totals: Counter[str] = Counter()
    for key, count in counts_of(placed).items():
        totals[key[index]] += count
    return totals


rooms = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=2, max_size=12).map(
    lambda sizes: {f"r{i}": Room(min(free, window), 4 * window) for i, (free, window) in enumerate(sizes)}
)
needs = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(
    lambda counts: [(f"b{i}", count) for i, count in enumerate(counts)]
)
prefixes = st.dictionaries(st.sampled_from([f"b{i}" for i in range(12)]), st.sampled_from(["x", "y"]))


def fit(wanted: Needs, among: dict[str, Room]) -> Needs:
    """No more than there are places."""
    left = sum(room.places for room in among.values())
    found = []
    for batch_id, count in wanted:
        if left > 0:
            found.append((batch_id, min(count, left)))
            left -= found[-1][1]
    return found


@given(rooms, needs, prefixes)
def test_all_that_is_dealt_is_placed_where_there_is_room(among: dict[str, Room], wanted: Needs, alike: dict) -> None:  # type: ignore[type-arg]
    dealt = fit(wanted, among)
    placed = place(dealt, among, alike, {})
    assert totals_of(placed, 0) == Counter(dict(dealt))
    for name, count in totals_of(placed, 1).items():
        assert count <= among[name].places
    total_free = sum(room.free for room in among.values())
    begin = sum(min(totals_of(placed, 1)[name], room.free) for name, room in among.items())
    assert begin == min(total_free, sum(count for _, count in dealt)), "nothing waits while a place is free"


@given(rooms, needs, prefixes)
def test_the_same_again_is_placed_in_the_same_way(among: dict[str, Room], wanted: Needs, alike: dict) -> None:  # type: ignore[type-arg]
    dealt = fit(wanted, among)
    homes: Homes = place(dealt, among, alike, {}).homes
    before = place(dealt, among, alike, homes)
    assert place(dealt, among, alike, before.homes) == before
    assert counts_of(before) == counts_of(place(dealt, among, alike, {}))


@given(rooms, needs, prefixes, st.integers(0, 11), st.integers(-10, 10))
def test_a_small_change_moves_few_requests(
    among: dict[str, Room],
    wanted: Needs,
    alike: dict,  # type: ignore[type-arg]
    which: int,
    change: int,
) -> None:
    dealt = fit(wanted, among)
    before = place(dealt, among, alike, {})
    changed = [
        (batch_id, max(1, count + change) if index == which else count) for index, (batch_id, count) in enumerate(dealt)
    ]
    changed = fit(changed, among)
    after = place(changed, among, alike, before.homes)
    come = counts_of(after) - counts_of(before)
    assert sum(come.values()) <= 2 * abs(change)


def test_what_was_on_a_replica_that_is_gone_moves_and_nothing_else() -> None:
    among = {f"r{i}": Room(0, 32) for i in range(8)}
    dealt = [(f"b{i}", 24) for i in range(8)]
    before = place(dealt, among, {}, {})
    del among["r3"]
    after = place(dealt, among, {}, before.homes)
    gone = {key: count for key, count in counts_of(before).items() if key[1] == "r3"}
    come = counts_of(after) - counts_of(before)
    assert sum(come.values()) == sum(gone.values())
    assert totals_of(after, 0) == Counter(dict(dealt))


def test_few_requests_are_spread_over_all_replicas_that_are_free() -> None:
    among = {f"r{i}": Room(8, 32) for i in range(5)}
    placed = place([("b", 10)], among, {}, {})
    assert totals_of(placed, 1) == Counter(dict.fromkeys(among, 2))


def test_batches_that_begin_alike_meet_on_few_replicas() -> None:
    among = {f"r{i}": Room(8, 32) for i in range(10)}
    dealt = [("a", 12), ("other", 100), ("b", 12), ("c", 8)]
    alike = {"a": "p", "b": "p", "c": "p"}
    placed = place(dealt, among, alike, {})
    assert sum(totals_of(placed, 0)[name] for name in alike) == 32
    homes = {name for batch_id in alike for name in placed.homes[batch_id]}
    assert len(homes) <= 4, "as many as begin at once, not all ten"


def test_a_replica_that_has_stopped_a_batch_gets_none_of_it() -> None:
    among = {"r0": Room(4, 16, frozenset({"a"})), "r1": Room(0, 16)}
    placed = place([("a", 10), ("b", 4)], among, {}, {"a": {"r0": 10}})
    assert counts_of(placed) == {("a", "r1"): 10, ("b", "r0"): 4}
    alone = place([("a", 10), ("b", 4)], {"r0": among["r0"]}, {}, {})
    assert counts_of(alone) == {("b", "r0"): 4}


def test_a_batch_that_is_dealt_in_pieces_has_its_turns_where_they_were() -> None:
    dealt = [("a", 2), ("b", 2), ("a", 2)]
    placed = place(dealt, {"x": Room(3, 3), "y": Room(3, 3)}, {}, {"a": {"x": 2, "y": 2}, "b": {"x": 1, "y": 1}})
    assert placed.pieces == {name: [("a", 1), ("b", 1), ("a", 1)] for name in ("x", "y")}
