"""Who owns which slot of host memory: each slot holds a copy of one KV block.

A block is known by the hash of its tokens and all before them, as in vLLM's prefix cache: what requests share is there
once. A block stays as long as a request that may need it is not finished.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


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

    @property
    def free_slots(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    @property
    def used_slots(self) -> int:
        """Slots that hold a block."""
        return len(self._slot_of)

    @property
    def request_ids(self) -> list[str]:
        """Requests that hold blocks."""
        return [*self._held]

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

    def find_slots(self, request_id: str, start: int, end: int) -> list[int]:
        """Slots of the blocks from `start` to `end` of a request that holds them."""
        return [self._slot_of[block_hash] for block_hash in self._held[request_id][start:end]]

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

    def lose(self, slots: set[int]) -> list[str]:
        """What some slots hold is worth nothing: nobody holds it, or what comes after it, any more.

        Returns:
            The requests that have lost blocks.
        """
        if not slots:
            return []
        bad = {block_hash for block_hash, slot in self._slot_of.items() if slot in slots}
        losers = []
        for request_id, held in [*self._held.items()]:
            first = next((index for index, block_hash in enumerate(held) if block_hash in bad), None)
            if first is not None:
                self.cut(request_id, first)
                losers.append(request_id)
        return losers

    def clear(self) -> None:
        """Nobody holds anything."""
        for request_id in self.request_ids:
            self.cut(request_id, 0)

    def _hold(self, request_id: str, block_hash: Hashable) -> None:
        self._held.setdefault(request_id, []).append(block_hash)
        self._users[block_hash].add(request_id)
