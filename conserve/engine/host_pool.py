"""Who owns which slot of host memory: each slot holds a copy of one KV block.

A block is known by the hash of its tokens and all before them, as in vLLM's prefix cache: what requests share is there
once. A block stays as long as a request that may need it is not finished. The last block of a preempted request, which
is not full, is its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Tail(NamedTuple):
    """A block that is not full.

    Attributes:
        slot: That holds it.
        blocks: Full blocks before it.
        tokens: Of its request that it holds.
    """

    slot: int
    blocks: int
    tokens: int


class HostPool:
    """The slots.

    Args:
        slots: How many there are.
    """

    def __init__(self, slots: int) -> None:
        self._free = list(range(slots - 1, -1, -1))
        self._slot_of: dict[Hashable, int] = {}
        self._users: dict[Hashable, set[str]] = {}
        self._held: dict[str, list[Hashable]] = {}
        self._tails: dict[str, Tail] = {}

    @property
    def free_slots(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    @property
    def used_slots(self) -> int:
        """Slots that hold a block."""
        return len(self._slot_of) + len(self._tails)

    @property
    def request_ids(self) -> list[str]:
        """Requests that hold blocks."""
        return [*{**self._held, **self._tails}]

    def count_saved(self, request_id: str) -> int:
        """Leading blocks of a request that it holds."""
        return len(self._held.get(request_id, ()))

    def join(self, request_id: str, hashes: Sequence[Hashable]) -> int:
        """Lets a request hold what others have saved of its next blocks. Returns how many leading blocks it holds.

        Args:
            request_id: The request.
            hashes: Of all its full blocks.
        """
        held = self._held.get(request_id, [])
        count = len(held)
        while count < len(hashes) and hashes[count] in self._slot_of:
            self._hold(request_id, hashes[count])
            count += 1
        return count

    def add(self, request_id: str, block_hash: Hashable) -> int:
        """Takes a slot for the next block of a request, which is not there yet.

        Returns:
            The slot, which the block has to be copied to.

        Raises:
            IndexError: no slot is free.
        """
        slot = self._free.pop()
        self._slot_of[block_hash] = slot
        self._users[block_hash] = set()
        self._hold(request_id, block_hash)
        return slot

    def has_room_for_tail(self, request_id: str) -> bool:
        """Whether there is a slot for the block of a request that is not full."""
        return bool(self._free) or request_id in self._tails

    def add_tail(self, request_id: str, blocks: int, tokens: int) -> int:
        """Takes a slot for the block of a request that is not full, in place of one that it may have had.

        Args:
            request_id: The request.
            blocks: Full blocks before it.
            tokens: That it holds.

        Returns:
            The slot, which the block has to be copied to.

        Raises:
            IndexError: no slot is free.
        """
        self.drop_tail(request_id)
        slot = self._free.pop()
        self._tails[request_id] = Tail(slot, blocks, tokens)
        return slot

    def find_tail(self, request_id: str) -> Tail | None:
        """The block of a request that is not full; None if it is not there."""
        return self._tails.get(request_id)

    def drop_tail(self, request_id: str) -> None:
        """A request does not need its block that is not full any more."""
        tail = self._tails.pop(request_id, None)
        if tail is not None:
            self._free.append(tail.slot)

    def find_slots(self, request_id: str, start: int, end: int) -> list[int]:
        """Slots of the blocks of a request from the one numbered `start` to before `end`, as far as it holds them."""
        return [self._slot_of[block_hash] for block_hash in self._held.get(request_id, [])[start:end]]

    def cut(self, request_id: str, blocks: int) -> int:
        """A request lets go of its blocks from the one numbered `blocks` on. Returns how many slots became free."""
        held = self._held.get(request_id, [])
        freed = 0
        while len(held) > blocks:
            block_hash = held.pop()
            users = self._users[block_hash]
            users.discard(request_id)
            if not users:
                del self._users[block_hash]
                self._free.append(self._slot_of.pop(block_hash))
                freed += 1
        if not held:
            self._held.pop(request_id, None)
        return freed

    def lose(self, slots: set[int]) -> None:
        """What some slots hold is worth nothing: nobody holds it, or what comes after it, any more."""
        if not slots:
            return
        for request_id, tail in [*self._tails.items()]:
            if tail.slot in slots:
                self.drop_tail(request_id)
        bad = {block_hash for block_hash, slot in self._slot_of.items() if slot in slots}
        for request_id, held in [*self._held.items()]:
            first = next((index for index, block_hash in enumerate(held) if block_hash in bad), None)
            if first is not None:
                self.cut(request_id, first)

    def release(self, request_id: str) -> None:
        """A request lets go of all that it holds."""
        self.cut(request_id, 0)
        self.drop_tail(request_id)

    def clear(self) -> None:
        """Nobody holds anything."""
        for request_id in self.request_ids:
            self.release(request_id)

    def _hold(self, request_id: str, block_hash: Hashable) -> None:
        self._held.setdefault(request_id, []).append(block_hash)
        self._users[block_hash].add(request_id)
