"""Requests that decode together: each iteration gives one token to each of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from heapq import heapify, heappop, heappush

from conserve.simulator.request import SimRequest


class Decodes:
    """A group of decoding requests, whose state is not touched in each iteration: they count ticks.

    Attributes:
        tick: Iterations so far.
        context: Tokens in the KV cache, of all of them.
        size: How many they are.
    """

    def __init__(self) -> None:
        self.tick = 0
        self.context = 0
        self.size = 0
        self._members: dict[int, SimRequest] = {}
        self._ends: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[SimRequest]:
        """In the order in which they began to decode."""
        return iter(self._members.values())

    def __contains__(self, request: SimRequest) -> bool:
        return request.number in self._members

    def add(self, request: SimRequest, ahead: int = 0) -> None:
        """A request whose prompt is computed, and that has to produce at least one token more.

        Args:
            request: Itself.
            ahead: It has been there for so many iterations already.
        """
        number = request.number
        request.joined_tick = joined_tick = self.tick - ahead
        request.end_tick = end_tick = joined_tick + request.output_tokens - request.produced
        self._members[number] = request
        self.context += request.computed + ahead
        self.size += 1
        heappush(self._ends, (end_tick, number))

    def remove(self, request: SimRequest) -> None:
        """Takes a request out; brings its state up to date."""
        del self._members[request.number]
        self.size -= 1
        beyond = max(0, self.tick - request.end_tick)
        passed = self.tick - request.joined_tick - beyond
        request.computed += passed
        request.produced += passed
        self.context -= request.computed + beyond

    def computed_of(self, request: SimRequest) -> int:
        """Tokens of a member in the KV cache, now."""
        return request.computed + self.tick - request.joined_tick

    def produced_of(self, request: SimRequest) -> int:
        """Output tokens of a member, now."""
        return request.produced + self.tick - request.joined_tick

    def iterations_to_end(self) -> int:
        """Iterations until the next of them ends; there must be one."""
        while True:
            end_tick, number = self._ends[0]
            request = self._members.get(number)
            if request is not None and request.end_tick == end_tick:
                return end_tick - self.tick
            heappop(self._ends)

    def iterations_until(self, ends: int) -> int:
        """Iterations until so many of them have ended; there must be as many."""
        return sorted([request.end_tick for request in self._members.values()])[ends - 1] - self.tick

    @property
    def has_ended(self) -> bool:
        """Whether somebody may have come to its end."""
        return bool(self._ends) and self._ends[0][0] <= self.tick

    def count_beyond(self, iterations: int) -> int:
        """Tokens that so many iterations more would count of members that end before."""
        last = self.tick + iterations
        ends = self._ends
        if not ends or ends[0][0] >= last:
            return 0
        # No more of the heap than ends before: below an entry there are only later ones.
        found: dict[int, int] = {}
        places = [0]
        for place in places:
            end_tick, number = ends[place]
            if end_tick >= last:
                continue
            request = self._members.get(number)
            if request is not None and request.end_tick == end_tick:
                found[number] = last - end_tick
            places.extend(range(2 * place + 1, min(2 * place + 3, len(ends))))
        return sum(found.values())

    def advance(self, iterations: int, held: Collection[SimRequest] = ()) -> None:
        """So many iterations; without those that are held back."""
        self.tick += iterations
        self.context += iterations * (self.size - len(held))
        if held:
            for request in held:
                request.joined_tick += iterations
                request.end_tick += iterations
            self._ends = [(request.end_tick, request.number) for request in self._members.values()]
            heapify(self._ends)

    def pop_ended(self) -> list[SimRequest]:
        """Takes out those that have come to their end, some maybe `tick - end_tick` iterations ago."""
        ended: list[SimRequest] = []
        while self._ends and self._ends[0][0] <= self.tick:
            end_tick, number = heappop(self._ends)
            request = self._members.get(number)
            if request is not None and request.end_tick == end_tick:
                self.remove(request)
                ended.append(request)
        return ended
