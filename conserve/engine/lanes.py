"""The waiting queue of our scheduler: online requests first, offline ones behind a gate."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping

from conserve.engine.vllm_compat import Request, RequestQueue, is_blocked
from conserve.policy.prefix_order import PrefixBacklog
from conserve.policy.priority import OFFLINE_PRIORITY


def is_offline(request: Request) -> bool:
    """Whether a request is a line of a batch."""
    return bool(request.priority >= OFFLINE_PRIORITY)


def split_lanes(requests: Iterable[Request]) -> tuple[list[Request], list[Request]]:
    """The online requests and the offline ones among them, in their order."""
    lanes: tuple[list[Request], list[Request]] = [], []
    for request in requests:
        lanes[request.priority >= OFFLINE_PRIORITY].append(request)
    return lanes


class LaneQueue(RequestQueue):
    """A request queue of vLLM with two lanes.

    The online lane goes by priority and arrival. Behind it, the offline lane keeps requests with a shared prefix
    together and offers no more than `offer` of them; so thousands of offline requests may wait without any work for
    them in a step. `len` counts all, whether offered or not; the truth value says whether there is one to take.

    Args:
        lost_tokens: Tokens that preempted requests had computed, by id: those with most of them go on first.
    """

    def __init__(self, lost_tokens: Mapping[str, int] | None = None) -> None:
        self.offer = 0
        self._lost_tokens = lost_tokens if lost_tokens is not None else {}
        self.backlog: PrefixBacklog[Request] = PrefixBacklog()
        self._online: list[Request] = []

    @property
    def online(self) -> list[Request]:
        """The waiting online requests, as a heap: the first one is next."""
        return self._online

    def add_request(self, request: Request) -> None:
        """Adds a request to its lane."""
        if is_offline(request):
            self.backlog.add(request.request_id, request, request.block_hashes)
        else:
            heapq.heappush(self._online, request)

    def prepend_request(self, request: Request) -> None:
        """Puts a request back: a preempted offline one comes before those that have not begun."""
        if is_offline(request) and not is_blocked(request):
            lost_tokens = self._lost_tokens.get(request.request_id, 0)
            self.backlog.add_front(request.request_id, request, request.block_hashes, lost_tokens)
        else:
            self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Puts requests back."""
        for request in requests:
            self.prepend_request(request)

    def peek_request(self) -> Request:
        """The next request. Raises IndexError when there is none to take."""
        if self._online:
            return self._online[0]
        if not self:
            raise IndexError("peek from an empty queue")
        return self.backlog.peek_next()

    def pop_request(self) -> Request:
        """Takes the next request. Raises IndexError when there is none to take."""
        if self._online:
            return heapq.heappop(self._online)
        if not self:
            raise IndexError("pop from an empty queue")
        self.offer -= 1
        return self.backlog.pop_next()

    def remove_request(self, request: Request) -> None:
        """Removes a request that is in the queue."""
        self.remove_requests([request])

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Removes those of the requests that are in the queue."""
        online = set()
        for request in requests:
            if is_offline(request):
                if request.request_id in self.backlog:
                    self.backlog.remove(request.request_id)
            else:
                online.add(request)
        if online:
            self._online = [request for request in self._online if request not in online]
            heapq.heapify(self._online)

    def __bool__(self) -> bool:
        return bool(self._online) or (self.offer > 0 and len(self.backlog) > 0)

    def __len__(self) -> int:
        return len(self._online) + len(self.backlog)

    def __iter__(self) -> Iterator[Request]:
        yield from sorted(self._online)
        yield from self.backlog
