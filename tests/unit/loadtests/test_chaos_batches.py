"""Which batches that nobody was told of are faults, and which were withdrawn."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any, cast

import pytest

from conserve.jobs.batch import Batch, BatchStatus, RequestCounts
from loadtests.chaos.batches import BatchClients
from loadtests.killing.application import ModelQuestions
from loadtests.killing.client import PatienceLostError, PatientClient
from loadtests.killing.ledger import Verdict


class OneAnswer:
    """A server whose first creation is answered with another batch than the one that it has in its list."""

    def __init__(self, listed: list[str], status: BatchStatus) -> None:
        self._listed = listed
        self._status = status
        self._name = ""
        self.refuses = False

    async def submit(self, content: bytes, metadata: Mapping[str, str]) -> Batch:
        self._name = metadata["name"]
        if self.refuses:
            raise PatienceLostError("503, for minutes")
        return self._batch("told", BatchStatus.CANCELLED)

    async def get(self, batch_id: str) -> Batch:
        return self._batch(batch_id, BatchStatus.CANCELLED if batch_id == "told" else self._status)

    async def list_batches(self) -> list[Batch]:
        return [self._batch(one, self._status) for one in self._listed]

    async def read_lines(self, batch: Batch) -> list[dict[str, Any]]:
        return []

    def _batch(self, batch_id: str, status: BatchStatus) -> Batch:
        return Batch.model_validate(
            {
                "id": batch_id,
                "endpoint": "/v1/chat/completions",
                "input_file_id": "file-0",
                "completion_window": "24h",
                "status": status,
                "created_at": 0,
                "expires_at": 0,
                "metadata": {"name": self._name},
                "request_counts": RequestCounts(total=0, completed=0, failed=0),
            }
        )


async def submit_one(server: OneAnswer) -> tuple[BatchClients, Verdict, list[str]]:
    verdict = Verdict(ModelQuestions())
    clients = BatchClients(cast("PatientClient", server), verdict, random.Random(1), 1, (1, 2))
    looks = iter([False])
    await clients.run(lambda: next(looks, True))
    return clients, verdict, await clients.find_missing()


def test_a_cancelled_batch_that_nobody_was_told_of_was_withdrawn() -> None:
    clients, verdict, missing = asyncio.run(submit_one(OneAnswer(["told", "refused"], BatchStatus.CANCELLED)))
    assert clients.withdrawn == ["refused"]
    assert verdict.unfinished == ["told: cancelled"]
    assert missing == []


def test_one_that_ended_otherwise_is_checked_like_the_others() -> None:
    clients, verdict, missing = asyncio.run(submit_one(OneAnswer(["written"], BatchStatus.FAILED)))
    assert clients.withdrawn == []
    assert verdict.unfinished == ["told: cancelled", "written: failed"]
    assert missing == ["told"]


def test_one_that_is_never_cancelled_to_its_end_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtests.chaos.batches.END_LIMIT_S", 0.0)
    clients, _, _ = asyncio.run(submit_one(OneAnswer(["told", "stuck"], BatchStatus.CANCELLING)))
    assert clients.withdrawn == []
    assert clients.unanswered == ["stuck is cancelling after 0 s"]


def test_one_of_which_no_client_was_told_anything_is_a_fault() -> None:
    server = OneAnswer(["lost"], BatchStatus.CANCELLED)
    verdict = Verdict(ModelQuestions())
    clients = BatchClients(cast("PatientClient", server), verdict, random.Random(1), 1, (1, 2))

    async def run() -> None:
        looks = iter([False])
        server.refuses = True
        await clients.run(lambda: next(looks, True))
        await clients.find_missing()

    asyncio.run(run())
    assert clients.withdrawn == []
    assert verdict.unfinished == ["lost: cancelled"]
