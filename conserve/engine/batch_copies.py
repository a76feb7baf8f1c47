"""Copies of KV blocks in step with a worker's batches."""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group

from conserve.engine.copier import Copier
from conserve.engine.copy_plan import CopyNote, CopyPlan, attach_copy_note
from conserve.engine.vllm_compat import ModelRunnerOutput


class BatchCopies:
    """Makes the copies that come with batches, and says which blocks have not come back.

    Args:
        copier: Makes them. Without one all have failed.
        ranks: Tensor-parallel workers, which compute a batch all or none.
    """

    def __init__(self, copier: Copier | None, ranks: int) -> None:
        self._copier = copier
        self._ranks = ranks
        self._missing: tuple[int, ...] = ()
        self._unmade: tuple[int, ...] = ()

    def begin(self, plan: CopyPlan | None) -> None:
        """Begins the copies of a batch and waits for those that it needs.

        Args:
            plan: None for a batch without copies.

        Raises:
            TimeoutError: a block has been in the middle of its copy for a very long time.
        """
        if plan is None:
            return
        if plan.job and self._copier is not None:
            self._copier.submit(plan)
        elif plan.job:
            self._unmade += tuple(block for _, block in plan.loads)
        if plan.wait_for:
            self._missing += self._wait_for(plan.wait_for)

    def _wait_for(self, job: int) -> tuple[int, ...]:
        """Waits for copies. Returns the blocks that have not come back on all ranks: only now they are looked for."""
        if self._copier is None:
            failed, self._unmade = self._unmade, ()
            return failed
        self._copier.wait_for(job)
        failed = self._copier.take_failed_blocks()
        if self._ranks > 1:
            parts: list[Any] = [()] * self._ranks
            torch.distributed.all_gather_object(parts, failed, group=get_tp_group().cpu_group)
            failed = tuple(sorted({block for part in parts for block in part}))
        return failed

    @property
    def is_missing(self) -> bool:
        """Whether blocks have not come back, here or on another rank, and the scheduler does not know it yet."""
        return bool(self._missing)

    def take_missing(self) -> tuple[int, ...]:
        """These blocks, which the scheduler is about to be told: until then no batch can be computed."""
        missing, self._missing = self._missing, ()
        return missing

    def annotate(self, output: Any) -> Any:
        """Puts a note of what was copied so far on an output, now or when it is there, and returns it."""
        if self._copier is not None:
            _attach(output, self._copier.take_note())
        return output

    def close(self) -> None:
        """Ends the copies."""
        if self._copier is not None:
            self._copier.close()


def _attach(output: Any, note: CopyNote) -> None:
    if isinstance(output, ModelRunnerOutput):
        attach_copy_note(output, note)
    elif (get_output := getattr(output, "get_output", None)) is not None:

        def get_annotated() -> Any:
            found = get_output()
            _attach(found, note)
            return found

        output.get_output = get_annotated
