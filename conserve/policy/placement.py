"""Which replicas work on which batches: few moves from one round to the next, common prefixes together.

A batch stays where it is as long as there is room for it. What is new to it goes where requests can begin at once; if
its prompts begin like those of another batch, to that one's replicas first, and to few of them.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

Homes = Mapping[str, Mapping[str, int]]
"""Requests of a batch that were offered to a replica: by batch and replica."""


class Room(msgspec.Struct, frozen=True, gc=False):
    """Places of a replica.

    Attributes:
        free: For requests that can begin at once.
        places: All, with those for requests that come after them.
        stopped: Batches of which it begins nothing.
    """

    free: int
    places: int
    stopped: frozenset[str] = frozenset()


class Placed(NamedTuple):
    """What was placed where.

    Attributes:
        pieces: Batches and how many of their requests, of each replica, in the order in which they were dealt.
        homes: The same by batch and replica.
    """

    pieces: Mapping[str, Sequence[tuple[str, int]]]
    homes: Homes


def place(
    dealt: Sequence[tuple[str, int]], rooms: Mapping[str, Room], prefixes: Mapping[str, str], homes: Homes
) -> Placed:
    """Gives each replica its batches and how many of their requests.

    Args:
        dealt: Batches and how many of their requests, in order; no more than there are places.
        rooms: Of all replicas that may take them, by name.
        prefixes: What prompts of a batch begin with, by batch; none or empty: with nothing in common.
        homes: Where requests of these batches were placed the last time.
    """
    if len(rooms) == 1:
        ((name, room),) = rooms.items()
        return Placed({name: [piece for piece in dealt if piece[0] not in room.stopped]}, {})
    needs: dict[str, int] = {}
    for batch_id, count in dealt:
        needs[batch_id] = needs.get(batch_id, 0) + count
    quotas = _Placing(rooms, needs, prefixes).run(homes)
    return Placed(_put_in_order(dealt, quotas), quotas)


class _Placing:
    """One round."""

    def __init__(self, rooms: Mapping[str, Room], needs: Mapping[str, int], prefixes: Mapping[str, str]) -> None:
        self._rooms = rooms
        self._left = dict(needs)
        self._prefixes = prefixes
        self._places = {name: room.places for name, room in rooms.items()}
        self._free = {name: room.free for name, room in rooms.items()}
        self._quotas: dict[str, dict[str, int]] = {batch_id: {} for batch_id in needs}
        self._of_prefix: dict[str, dict[str, None]] = defaultdict(dict)
        # Who has most room comes first, so that a single request goes where nothing holds it up.
        self._ordered = sorted(rooms, key=lambda name: -rooms[name].free)
        self._open = deque(self._ordered)
        total_free = sum(self._free.values())
        self._filled = min(1.0, sum(needs.values()) / total_free) if total_free else 1.0

    def run(self, homes: Homes) -> dict[str, dict[str, int]]:
        for batch_id in self._left:
            self._stay(batch_id, homes.get(batch_id, {}))
        for batch_id, left in self._left.items():
            if left > 0:
                self._begin_elsewhere(batch_id)
        self._open = deque(self._ordered)
        for batch_id, left in self._left.items():
            if left > 0:
                self._wait(batch_id)
        self._use_free_places()
        return self._quotas

    def _stay(self, batch_id: str, homes: Mapping[str, int]) -> None:
        # The smallest parts are given up first where less is to be placed.
        for name, before in sorted(homes.items(), key=lambda item: -item[1]) if len(homes) > 1 else homes.items():
            if name in self._places:
                self._give(batch_id, name, min(before, self._left[batch_id]))

    def _begin_elsewhere(self, batch_id: str) -> None:
        """Places for requests that can begin at once."""
        prefix = self._prefixes.get(batch_id, "")
        for name in [*self._quotas[batch_id], *(self._of_prefix[prefix] if prefix else ())]:
            self._give(batch_id, name, min(self._left[batch_id], self._free[name]))
        # With fewer requests than places all replicas get some, unless they have a prefix in common.
        share = 1.0 if prefix else self._filled
        for name in self._take_turns(self._free, batch_id):
            most = min(self._free[name], math.ceil(share * self._rooms[name].free))
            self._give(batch_id, name, min(self._left[batch_id], most))

    def _wait(self, batch_id: str) -> None:
        """Places for requests that come after those."""
        prefix = self._prefixes.get(batch_id, "")
        for name in [*self._quotas[batch_id], *(self._of_prefix[prefix] if prefix else ())]:
            self._give(batch_id, name, self._left[batch_id])
        for name in self._take_turns(self._places, batch_id):
            self._give(batch_id, name, self._left[batch_id])

    def _take_turns(self, room: Mapping[str, int], batch_id: str) -> Iterator[str]:
        """Replicas with room, from where the batch before has stopped, as long as anything is left of this one."""
        turns = self._open
        passed = 0  # Without anything given.
        while turns and self._left[batch_id] > 0 and passed < len(turns):
            name = turns[0]
            if room[name] <= 0:
                turns.popleft()
                continue
            before = self._left[batch_id]
            yield name
            passed = passed + 1 if self._left[batch_id] == before else 0
            if self._left[batch_id] > 0 or room is self._free:
                turns.rotate(-1)

    def _use_free_places(self) -> None:
        """Requests that would wait at a replica go where places stay free."""
        idle = [name for name, free in self._free.items() if free > 0]
        if not idle:
            return
        placed: dict[str, int] = defaultdict(int)
        for quotas in self._quotas.values():
            for name, count in quotas.items():
                placed[name] += count
        waiting = {name: count - self._rooms[name].free for name, count in placed.items()}
        for batch_id, quotas in self._quotas.items():
            for name, count in list(quotas.items()):
                movable = min(count, waiting[name])
                while movable > 0 and idle:
                    target = idle[-1]
                    if batch_id in self._rooms[target].stopped:
                        break
                    moved = min(movable, self._free[target])
                    self._take_back(batch_id, name, moved)
                    waiting[name] -= moved
                    movable -= moved
                    self._left[batch_id] += moved
                    self._give(batch_id, target, moved)
                    if self._free[target] <= 0:
                        idle.pop()

    def _give(self, batch_id: str, name: str, count: int) -> None:
        places = self._places[name]
        if count > places:
            count = places
        if count <= 0 or batch_id in self._rooms[name].stopped:
            return
        quotas = self._quotas[batch_id]
        quotas[name] = quotas.get(name, 0) + count
        self._left[batch_id] -= count
        self._places[name] = places - count
        free = self._free[name] - count
        self._free[name] = free if free > 0 else 0
        prefix = self._prefixes.get(batch_id)
        if prefix:
            self._of_prefix[prefix][name] = None

    def _take_back(self, batch_id: str, name: str, count: int) -> None:
        quotas = self._quotas[batch_id]
        quotas[name] -= count
        if not quotas[name]:
            del quotas[name]
        self._places[name] += count


def _put_in_order(
    dealt: Sequence[tuple[str, int]], quotas: Mapping[str, dict[str, int]]
) -> dict[str, list[tuple[str, int]]]:
    """Each piece that was dealt is spread over the replicas of its batch."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    pieces = Counter([batch_id for batch_id, _ in dealt])
    left: dict[str, dict[str, int]] = {}
    for batch_id, count in dealt:
        if pieces[batch_id] == 1:
            for name, most in quotas[batch_id].items():
                found[name].append((batch_id, most))
            continue
        if batch_id not in left:
            left[batch_id] = dict(quotas[batch_id])
        _split(batch_id, count, left[batch_id], found)
    return found


def _split(batch_id: str, count: int, homes: dict[str, int], found: dict[str, list[tuple[str, int]]]) -> None:
    """Takes so many requests from the replicas of a batch, from each as large a part, and adds them to `found`."""
    while count > 0 and homes:
        share = -(-count // len(homes))
        for name, most in [*homes.items()]:
            part = share if share < most else most
            if part > count:
                part = count
            if part == most:
                del homes[name]
            else:
                homes[name] = most - part
            own = found[name]
            if own and own[-1][0] == batch_id:
                own[-1] = (batch_id, own[-1][1] + part)
            else:
                own.append((batch_id, part))
            count -= part
            if count <= 0:
                break
