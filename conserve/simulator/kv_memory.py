"""The KV memory of a replica, in tokens: who runs holds some of it, and what nobody holds may still be found.

Blocks are counted, not modelled one by one: a request holds its tokens and, on average, half a block besides. What
requests have in common is held once. Prefixes and the tokens of preempted requests stay until the memory is needed, the
oldest ones going first.
"""

from __future__ import annotations

from collections import OrderedDict

from conserve.simulator.request import SimRequest


class KvMemory:
    """One replica's.

    Args:
        blocks: KV blocks.
        block_size: Tokens of a block.

    Attributes:
        used: Tokens that are held, with the halves of blocks.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.capacity = blocks * block_size
        self.used = 0
        self._half = block_size // 2
        self._sharers: dict[int, int] = {}
        self._prefixes: dict[int, int] = {}
        self._left: OrderedDict[int, int] = OrderedDict()  # by prefix, or by request as a negative number
        self._left_tokens = 0

    @property
    def free_tokens(self) -> int:
        """That nobody holds, found or not."""
        return self.capacity - self.used

    @property
    def free_blocks(self) -> int:
        """The same in blocks; negative if more is held than there is."""
        return (self.capacity - self.used) // self.block_size

    @property
    def usage(self) -> float:
        """Share that is held."""
        return self.used / self.capacity

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def find_cached(self, request: SimRequest) -> int:
        """Leading tokens of a waiting request that are there: of the others with its prefix, or left by itself."""
        if self._left and (own := self._left.get(-1 - request.number)):
            return min(own, request.total_tokens - 1) // self.block_size * self.block_size
        if request.prefix and request.prefix in self._prefixes:
            return min(self._prefixes[request.prefix], request.prefix_tokens) // self.block_size * self.block_size
        return 0

    def count_needed(self, request: SimRequest) -> int:
        """Tokens that all of a waiting request takes of what is free: all but those that others hold."""
        if request.prefix and self._sharers.get(request.prefix, 0) and request.prefix in self._prefixes:
            return request.total_tokens - self._prefixes[request.prefix]
        return request.total_tokens

    def admit(self, request: SimRequest, cached: int) -> None:
        """A request begins, with so many tokens that are there already."""
        if self._left and (own := self._left.pop(-1 - request.number, 0)) > 0:
            self._left_tokens -= own
        shared = min(cached, request.prefix_tokens) if cached and request.prefix in self._prefixes else 0
        request.computed = cached
        request.cached = shared
        if request.prefix:
            sharers = self._sharers.get(request.prefix, 0)
            self._sharers[request.prefix] = sharers + 1
            if not sharers and request.prefix in self._left:
                self._left_tokens -= self._left.pop(request.prefix)
                self.used += self._prefixes[request.prefix]
        self.used += cached - shared + self._half
        if self._left:
            self._shrink()

    def grow(self, tokens: int) -> None:
        """So many tokens more are held."""
        self.used += tokens
        if self._left_tokens:
            self._shrink()

    def note_computed(self, request: SimRequest) -> None:
        """The prompt of a request is computed: others find its prefix."""
        prefix = request.prefix
        if prefix and prefix not in self._prefixes and request.computed >= request.prefix_tokens:
            whole = request.prefix_tokens // self.block_size * self.block_size
            self._prefixes[prefix] = whole
            request.cached = whole

    def release(self, request: SimRequest, *, stays: bool = False) -> None:
        """A request ends or is preempted; with `stays`, its tokens are found until the memory is needed."""
        own = request.computed - request.cached
        self.used -= own + self._half
        prefix = request.prefix
        if prefix:
            self._sharers[prefix] -= 1
            if not self._sharers[prefix] and prefix in self._prefixes:
                self.used -= self._prefixes[prefix]
                self._leave(prefix, self._prefixes[prefix])
        if stays and not prefix:
            self._leave(-1 - request.number, own // self.block_size * self.block_size)
        request.computed = request.cached = 0

    def count_freed(self, computed: int, request: SimRequest) -> int:
        """Blocks that the end of a running request, with so many computed tokens, makes free."""
        return self.blocks_for(computed - request.cached)

    def clear(self) -> None:
        """Everything is gone, as with the replica's process."""
        self.used = self._left_tokens = 0
        self._sharers.clear()
        self._prefixes.clear()
        self._left.clear()

    def _leave(self, key: int, tokens: int) -> None:
        if tokens > 0:
            self._left[key] = tokens
            self._left_tokens += tokens
        self._shrink()

    def _shrink(self) -> None:
        while self._left and (excess := self.used + self._left_tokens - self.capacity) > 0:
            key, tokens = next(iter(self._left.items()))
            if key < 0 and tokens > excess:
                # The last tokens of a request go first.
                self._left[key] = tokens - excess
                self._left_tokens -= excess
                return
            del self._left[key]
            self._left_tokens -= tokens
            if key > 0:
                self._prefixes.pop(key, None)
