"""Which KV blocks the workers copy to host memory and back, and what they answer.

As `step_plan`, it rides on vLLM's messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_PLAN = "conserve_copies"
_NOTE = "conserve_copied"


@dataclass(frozen=True)
class CopyPlan:
    """What to copy when a batch begins. All workers do the same with their part of each block.

    Copies are made one after the other, in the order in which they were planned, while batches are computed.

    Attributes:
        job: Number of these copies, from 1; 0 if there are none.
        saves: From KV block to slot of host memory, after the loads.
        loads: From slot to KV block.
        wait_for: The batch is computed only when the copies of this number and all before have been made: it writes to
            their blocks, or reads from those that are loaded. 0 for none.
        first_saves: As `saves`, but before the loads, one of which may be to the same block.
    """

    job: int = 0
    saves: tuple[tuple[int, int], ...] = ()
    loads: tuple[tuple[int, int], ...] = ()
    wait_for: int = 0
    first_saves: tuple[tuple[int, int], ...] = ()

    @property
    def all_saves(self) -> tuple[tuple[int, int], ...]:
        """Those that come first, and the others."""
        return self.first_saves + self.saves


@dataclass(frozen=True)
class CopyNote:
    """What has become of copies so far.

    Attributes:
        done: All copies up to this number have been made, or have failed.
        copied_blocks: Blocks copied since the last note.
        copied_s: How long that took.
        waited_s: How long a batch has waited for copies since the last note.
        failed_slots: Slots that hold nothing of worth, since their save has failed.
    """

    done: int = 0
    copied_blocks: int = 0
    copied_s: float = 0.0
    waited_s: float = 0.0
    failed_slots: tuple[int, ...] = ()


def attach_copies(batch: Any, plan: CopyPlan) -> None:
    """Puts a plan on a `SchedulerOutput`."""
    setattr(batch, _PLAN, plan)


def read_copies(batch: Any) -> CopyPlan | None:
    """The plan of a batch; None if it has none."""
    return getattr(batch, _PLAN, None)


def attach_copy_note(output: Any, note: CopyNote) -> None:
    """Puts a note on a `ModelRunnerOutput`."""
    setattr(output, _NOTE, note)


def read_copy_note(output: Any) -> CopyNote | None:
    """The note of an output; None if it has none."""
    return getattr(output, _NOTE, None)
