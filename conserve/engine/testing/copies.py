"""Host memory of a worker without a model.

Copies are made when the next batch begins, unless a test wants it otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, MutableMapping

from conserve.engine.copy_plan import CopyNote, CopyPlan

CopyFails = Callable[[CopyPlan], bool]
CountEarly = Callable[[], int]


class WrongCopy(AssertionError):
    """A real worker would compute garbage, or keep some."""


class FakeCopies:
    """Makes the copies that plans name.

    Args:
        cache: The KV cache, by block and place in the block.
        block_size: Tokens of a block.
        fails: Which plans fail; by default none.
        count_early: How many of those that came with earlier batches are made when one begins that needs none of them.

    Attributes:
        host: What is in each slot.
        planned, made, waiting: Plans, all of them, those that were made, and those that are to be made.
        bad_slots: Slots whose save has failed.
    """

    def __init__(
        self,
        cache: MutableMapping[tuple[int, int], int],
        block_size: int,
        fails: CopyFails = lambda plan: False,
        count_early: CountEarly = lambda: 1,
    ) -> None:
        self.host: dict[int, list[int | None]] = {}
        self.planned: list[CopyPlan] = []
        self.made: list[CopyPlan] = []
        self._cache = cache
        self._block_size = block_size
        self._fails = fails
        self._count_early = count_early
        self.waiting: deque[CopyPlan] = deque()
        self.bad_slots: set[int] = set()
        self._failed_slots: list[int] = []
        self._failed_blocks: list[int] = []
        self._missing: list[int] = []
        self._copied = 0

    def begin(self, plan: CopyPlan | None) -> None:
        """As `BatchCopies.begin`."""
        for _ in range(min(self._count_early(), len(self.waiting))):
            self._make(self.waiting.popleft())
        if plan is None:
            return
        if plan.job:
            self.planned.append(plan)
            self.waiting.append(plan)
        if plan.wait_for:
            while self.waiting and self.waiting[0].job <= plan.wait_for:
                self._make(self.waiting.popleft())
            self._missing += self._failed_blocks
            self._failed_blocks = []

    def check_read(self, block: int) -> None:
        """A batch reads from a block.

        Raises:
            WrongCopy: what is to come there has not come yet.
        """
        loads = [plan.job for plan in self.waiting if block in (loaded for _, loaded in plan.loads)]
        if loads:
            raise WrongCopy(f"block {block} is used before copy {loads[0]} to it was made")

    def check_written(self, block: int) -> None:
        """A batch writes to a block.

        Raises:
            WrongCopy: a copy to or from it has not been made yet.
        """
        self.check_read(block)
        saves = [plan.job for plan in self.waiting if block in (saved for saved, _ in plan.all_saves)]
        if saves:
            raise WrongCopy(f"block {block} is written before copy {saves[0]} of it was made")

    def copy_block(self, source: int, target: int) -> None:
        """As vLLM's workers copy a block within the KV cache before a batch is computed.

        Raises:
            WrongCopy: a copy to or from one of them has not been made yet.
        """
        self.check_read(source)
        self.check_written(target)
        for place in range(self._block_size):
            self._put(target, place, self._cache.get((source, place)))

    @property
    def is_missing(self) -> bool:
        """As `BatchCopies.is_missing`."""
        return bool(self._missing)

    def take_missing(self) -> tuple[int, ...]:
        """As `BatchCopies.take_missing`."""
        missing, self._missing = tuple(self._missing), []
        return missing

    def take_note(self) -> CopyNote:
        """As `Copier.take_note`."""
        slots, self._failed_slots = tuple(self._failed_slots), []
        copied, self._copied = self._copied, 0
        return CopyNote(
            done=self.made[-1].job if self.made else 0,
            copied_blocks=copied,
            copied_s=0.001 * copied,
            failed_slots=slots,
        )

    def _make(self, plan: CopyPlan) -> None:
        self.made.append(plan)
        saved = {slot for _, slot in plan.all_saves}
        is_bad = any(slot in self.bad_slots for slot, _ in plan.loads)
        if self._fails(plan) or is_bad:
            self.bad_slots |= saved
            self._failed_slots += sorted(saved)
            self._failed_blocks += [block for _, block in plan.loads]
            return
        self.bad_slots -= saved
        self._save(plan.first_saves)
        for slot, block in plan.loads:
            for place, value in enumerate(self.host[slot]):
                self._put(block, place, value)
        self._save(plan.saves)
        self._copied += len(plan.all_saves) + len(plan.loads)

    def _save(self, saves: Iterable[tuple[int, int]]) -> None:
        for block, slot in saves:
            self.host[slot] = [self._cache.get((block, place)) for place in range(self._block_size)]

    def _put(self, block: int, place: int, value: int | None) -> None:
        self._cache.pop((block, place), None)
        if value is not None:
            self._cache[block, place] = value
