"""Copies in step with batches: failures are told once, on all ranks alike, with the batch that has to know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from conserve.engine import batch_copies
from conserve.engine.batch_copies import BatchCopies
from conserve.engine.copy_plan import CopyNote, CopyPlan, read_copy_note
from conserve.engine.vllm_compat import ModelRunnerOutput


class FakeCopier:
    """Copies whose outcome is known."""

    def __init__(self, *failed: int) -> None:
        self.failed = failed
        self.calls: list[tuple[str, int]] = []

    def submit(self, plan: CopyPlan) -> None:
        self.calls.append(("submit", plan.job))

    def wait_for(self, job: int) -> None:
        self.calls.append(("wait_for", job))

    def take_failed_blocks(self) -> tuple[int, ...]:
        failed, self.failed = self.failed, ()
        return failed

    def take_note(self) -> CopyNote:
        return CopyNote(done=len(self.calls))


def test_failures_are_looked_for_when_a_batch_waits_and_told_once() -> None:
    copier: Any = FakeCopier(7)
    copies = BatchCopies(copier, ranks=1)
    copies.begin(None)
    copies.begin(CopyPlan(job=1, loads=((0, 7),)))
    assert not copies.is_missing
    copies.begin(CopyPlan(wait_for=1))
    assert copier.calls == [("submit", 1), ("wait_for", 1)]
    assert copies.is_missing
    assert copies.take_missing() == (7,)
    assert not copies.is_missing


def test_what_is_missing_on_one_rank_is_missing_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(parts: list[Any], mine: tuple[int, ...], group: str) -> None:
        assert group == "cpu"
        parts[:] = [mine, (9, 4)]

    monkeypatch.setattr(batch_copies.torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(batch_copies, "get_tp_group", lambda: SimpleNamespace(cpu_group="cpu"))
    copier: Any = FakeCopier()
    copies = BatchCopies(copier, ranks=2)
    copies.begin(CopyPlan(job=1, loads=((0, 4), (1, 9)), wait_for=1))
    assert copies.take_missing() == (4, 9)


def test_without_host_memory_nothing_comes_back() -> None:
    copies = BatchCopies(None, ranks=1)
    copies.begin(CopyPlan(job=1, saves=((3, 0),), loads=((0, 7),)))
    assert not copies.is_missing, "nobody has to know yet"
    copies.begin(CopyPlan(wait_for=1))
    assert copies.take_missing() == (7,)
    output = ModelRunnerOutput(req_ids=[], req_id_to_index={})
    assert copies.annotate(output) is output
    assert read_copy_note(output) is None
    copies.close()


def test_a_note_is_of_the_time_of_its_batch_also_where_the_output_comes_later() -> None:
    class Later:
        def get_output(self) -> ModelRunnerOutput:
            return ModelRunnerOutput(req_ids=[], req_id_to_index={})

    copier: Any = FakeCopier()
    copies = BatchCopies(copier, ranks=1)
    later = copies.annotate(Later())
    copies.begin(CopyPlan(job=1, saves=((3, 0),)))
    assert read_copy_note(later.get_output()) == CopyNote(done=0)
    assert read_copy_note(copies.annotate(ModelRunnerOutput(req_ids=[], req_id_to_index={}))) == CopyNote(done=1)
