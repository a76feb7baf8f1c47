"""The offline requests that wait in an engine, ordered so that those with a shared prefix come one after the other.

What they share is then computed once and still in the prefix cache when the next of them needs it. As in HyGen's prefix
sharing maximization (NeurIPS 2025) it is a depth-first walk through a tree of prompts, with a bound on how long the
oldest request may be passed over.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

PATH_BLOCKS = 64
"""Blocks of a prompt that are looked at. Prompts that share more are taken as equal, which bounds the tree's depth."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Entry(Generic[T]):
    """A waiting request. `node` is where its path ends; a preempted request has none, since it is not in the tree."""

    key: Hashable
    item: T
    path: tuple[Hashable, ...]
    node: _Node[T] | None = None
    rank: tuple[int, int] = (0, 0)


class _Node(Generic[T]):
    """All requests whose paths begin with the same `depth` blocks, which are the first ones of `path`.

    There is a node only where a path ends or where two part. `entries` holds the requests of the whole subtree, oldest
    first, so that the oldest one is known at once; a request is in as many of these as its path has nodes.
    """

    __slots__ = ("children", "depth", "entries", "parent", "path")

    def __init__(self, path: tuple[Hashable, ...], depth: int, parent: _Node[T] | None) -> None:
        self.path = path
        self.depth = depth
        self.parent = parent
        self.children: dict[Hashable, _Node[T]] = {}  # by the block that follows
        # Not a dict: finding the first key of one gets slow once many have been removed at its front.
        self.entries: OrderedDict[Hashable, _Entry[T]] = OrderedDict()

    def find_oldest(self) -> _Entry[T]:
        return next(iter(self.entries.values()))

    def find_child(self, path: tuple[Hashable, ...]) -> _Node[T] | None:
        """The child whose requests share at least one more block with `path`, which begins like this node."""
        return self.children.get(path[self.depth]) if self.depth < len(path) else None


class PrefixBacklog(Generic[T]):
    """Waiting requests, each under a key that is in it once.

    Next comes the request that shares the longest prefix with the one popped last, among equals the oldest. Before all
    others come those that were preempted, since they hold up work already done: first those with the most of it.

    Adding, popping and removing take time in proportion to the path's length, not to the number of requests; only when
    a path parts within a prefix that a whole group shares, that group is copied once (a millisecond for 10,000).

    Args:
        max_bypassed: How many requests may be popped before the oldest one since it came to be the oldest; then it is
            next (preempted requests do not count).
        ordered: False gives the order of arrival, after the preempted ones. It may be set at any time.
    """

    def __init__(self, max_bypassed: int = 256, *, ordered: bool = True) -> None:
        self.max_bypassed = max_bypassed
        self.ordered = ordered
        self.clear()

    def clear(self) -> None:
        """Forgets all requests, and which one was popped last."""
        self._root: _Node[T] = _Node((), 0, None)
        self._preempted: dict[Hashable, _Entry[T]] = {}
        self._ranks: list[tuple[int, int, Hashable]] = []  # of the preempted, sorted; the next one is last
        self._preemptions = 0
        self._last_path: tuple[Hashable, ...] = ()
        self._bypassed = 0  # requests popped before the oldest one since it came to be the oldest

    def __len__(self) -> int:
        return len(self._root.entries) + len(self._preempted)

    def __contains__(self, key: object) -> bool:
        return key in self._root.entries or key in self._preempted

    def __iter__(self) -> Iterator[T]:
        """All requests: the preempted ones in the order of their preemption, then the others in that of arrival."""
        for entry in self._preempted.values():
            yield entry.item
        for entry in self._root.entries.values():
            yield entry.item

    def add(self, key: Hashable, item: T, path: Sequence[Hashable]) -> None:
        """Adds a new request.

        Args:
            key: Its id.
            item: What `pop_next` gives back.
            path: The hashes of its prompt's blocks, in order; those after the first `PATH_BLOCKS` are ignored.

        Raises:
            ValueError: A request with this key is waiting already.
        """
        self._refuse_known(key)
        entry = _Entry(key, item, tuple(path[:PATH_BLOCKS]))
        node = self._root
        node.entries[key] = entry
        while node.depth < len(entry.path):
            node = self._descend(node, entry.path)
            node.entries[key] = entry
        entry.node = node

    def add_front(self, key: Hashable, item: T, path: Sequence[Hashable], computed_tokens: int) -> None:
        """Adds a preempted request, to come before all that were never started.

        Args:
            key: Its id.
            item: What `pop_next` gives back.
            path: As in `add`.
            computed_tokens: Work done for it; more comes first, among equals the one preempted last.

        Raises:
            ValueError: A request with this key is waiting already.
        """
        self._refuse_known(key)
        self._preemptions += 1
        rank = (computed_tokens, self._preemptions)
        self._preempted[key] = _Entry(key, item, tuple(path[:PATH_BLOCKS]), rank=rank)
        insort(self._ranks, (*rank, key))  # no two have the same number, so keys are never compared

    def peek_next(self) -> T:
        """The request that `pop_next` would give. Raises IndexError if there is none."""
        return self._find_next().item

    def list_preempted(self, most: int) -> list[T]:
        """The preempted requests that come next, in their order, at most so many."""
        return [self._preempted[key].item for *_, key in reversed(self._ranks[-most:])] if most > 0 else []

    def pop_next(self) -> T:
        """Takes the next request out. Raises IndexError if there is none."""
        entry = self._find_next()
        if entry.node is not None:
            self._bypassed += 1
        self._remove(entry)
        self._last_path = entry.path
        return entry.item

    def remove(self, key: Hashable) -> T:
        """Takes out the request with this key, such as a cancelled one. Raises KeyError if it is not waiting."""
        entry = self._preempted[key] if key in self._preempted else self._root.entries[key]
        self._remove(entry)
        return entry.item

    def _refuse_known(self, key: Hashable) -> None:
        if key in self:
            raise ValueError(f"request {key!r} is waiting already")

    def _find_next(self) -> _Entry[T]:
        if self._ranks:
            return self._preempted[self._ranks[-1][2]]
        node = self._root
        if not node.entries:
            raise IndexError("no request is waiting")
        path = self._last_path
        if not path or not self.ordered or self._bypassed >= self.max_bypassed:
            return node.find_oldest()
        while (child := node.find_child(path)) is not None:
            parts = path[node.depth : child.depth] != child.path[node.depth : child.depth]
            node = child
            if parts:
                break
        return node.find_oldest()

    def _descend(self, node: _Node[T], path: tuple[Hashable, ...]) -> _Node[T]:
        """The next node from `node` on the way to where `path` ends, made if need be."""
        block = path[node.depth]
        child = node.children.get(block)
        if child is None:
            child = node.children[block] = _Node(path, len(path), node)
        elif path[node.depth : child.depth] != child.path[node.depth : child.depth]:
            end = min(child.depth, len(path))
            shared = next((depth for depth in range(node.depth, end) if path[depth] != child.path[depth]), end)
            middle = node.children[block] = _Node(child.path, shared, node)
            middle.children[child.path[shared]] = child
            middle.entries = child.entries.copy()
            child.parent = middle
            child = middle
        return child

    def _remove(self, entry: _Entry[T]) -> None:
        if entry.node is None:
            del self._preempted[entry.key]
            del self._ranks[bisect_left(self._ranks, entry.rank)]  # a pair sorts just before the triple that it begins
            return
        if entry is self._root.find_oldest():
            self._bypassed = 0
        node: _Node[T] | None = entry.node
        while node is not None:
            del node.entries[entry.key]
            parent = node.parent
            if parent is not None:
                block = node.path[parent.depth]
                if not node.entries:
                    del parent.children[block]
                elif len(node.children) == 1:
                    (child,) = node.children.values()
                    if len(child.entries) == len(node.entries):  # no path ends or parts here any more
                        parent.children[block] = child
                        child.parent = parent
            node = parent
