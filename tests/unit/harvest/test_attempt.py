from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from conserve.engine.contract import (
    AttemptTimeout,
    EngineDied,
    EngineFault,
    EngineGone,
    EngineStats,
    OfflineResult,
    OnChunk,
    TokenRecord,
)
from conserve.harvest.attempt import AttemptRunner, UnusableLineError, find_fault
from conserve.jobs.batch import Batch, BatchStatus
from conserve.jobs.claims import ClaimedRequest
from conserve.jobs.files import FileStore
from conserve.policy.retry import FaultKind

FILE_ID = "file-12345678"
BATCH = Batch(
    id="batch_12345678",
    endpoint="/v1/chat/completions",
    input_file_id=FILE_ID,
    completion_window="24h",
    status=BatchStatus.IN_PROGRESS,
    created_at=1,
)


class FakeEngine:
    def __init__(self, result: OfflineResult) -> None:
        self.result = result

    async def offline(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        timeout_s: float,
        record: TokenRecord | None = None,
        *,
        on_chunk: OnChunk | None = None,
    ) -> OfflineResult:
        return self.result

    def stats(self) -> EngineStats:
        raise NotImplementedError

    def grant_floor(self, share: float) -> None:
        raise NotImplementedError


async def attempt(tmp_path: Path, line: bytes, result: OfflineResult) -> Any:
    store = FileStore(str(tmp_path))
    with store.storage.create(store.file_path(FILE_ID)) as file:
        file.write(line)
    claimed = ClaimedRequest(BATCH.id, 1, 0, len(line), "1-a", 1)
    return await AttemptRunner(FakeEngine(result), store, 10).run(claimed, BATCH)


@pytest.mark.parametrize(("status_code", "kind"), [(200, "output"), (400, "error")])
async def test_an_answer_becomes_a_line(tmp_path: Path, status_code: int, kind: str) -> None:
    line = json.dumps({"custom_id": "a", "body": {}}).encode()
    finished = await attempt(tmp_path, line, OfflineResult(status_code, {"id": "x"}, 7, 3))
    assert (finished.kind, finished.fence, finished.prompt_tokens, finished.completion_tokens) == (kind, "1-a", 7, 3)
    written = json.loads(finished.content)
    assert written["custom_id"] == "a"
    assert written["response"] == {"status_code": status_code, "request_id": "x", "body": {"id": "x"}}


async def test_an_answer_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    line = json.dumps({"custom_id": "a", "body": {}}).encode()
    finished = await attempt(tmp_path, line, OfflineResult(200, {"logprob": math.nan}))
    assert finished.kind == "error"
    assert json.loads(finished.content)["error"]["code"] == "unserializable_response"


@pytest.mark.parametrize("line", [b"{", b"7", b'{"custom_id": "a"}', b'{"custom_id": "a", "body": 3}', b"\xff"])
async def test_a_line_that_has_changed_is_not_run(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(UnusableLineError, match="has changed"):
        await attempt(tmp_path, line, OfflineResult(200, {}))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineFault("fell over"), FaultKind.ENGINE_FAULT),
        (EngineDied("ended"), FaultKind.ENGINE_DIED),
        (AttemptTimeout("slow"), FaultKind.TIMEOUT),
        (UnusableLineError("changed"), FaultKind.UNUSABLE),
        (RuntimeError("surprise"), FaultKind.REPLICA_FAULT),
        (EngineGone("ended before"), None),
        (OSError("storage away"), None),
        (EOFError("short"), None),
        (RedisConnectionError("away"), None),
    ],
)
def test_faults_are_told_apart(error: Exception, kind: FaultKind | None) -> None:
    fault = find_fault(error)
    assert fault.kind == kind
    assert str(error) in fault.reason


@pytest.mark.parametrize(
    ("body", "kept", "restarted"),
    [({"temperature": 0}, True, None), ({"temperature": 1}, False, "sampling"), ({}, False, "sampling")],
)
async def test_only_requests_that_can_be_continued_keep_their_record(
    tmp_path: Path, body: dict[str, Any], kept: bool, restarted: str | None
) -> None:
    given: list[TokenRecord | None] = []

    class RecordingEngine(FakeEngine):
        async def offline(
            self, endpoint: str, body: Mapping[str, Any], timeout_s: float, record: TokenRecord | None = None
        ) -> OfflineResult:
            given.append(record)
            return self.result

    store = FileStore(str(tmp_path))
    line = json.dumps({"custom_id": "a", "body": body}).encode()
    with store.storage.create(store.file_path(FILE_ID)) as file:
        file.write(line)
    claimed = ClaimedRequest(BATCH.id, 1, 0, len(line), "1-a", 1)
    record = TokenRecord(token_ids=[1, 2], journaled=2)
    await AttemptRunner(RecordingEngine(OfflineResult(200, {})), store, 10).run(claimed, BATCH, record)
    assert given == ([record] if kept else [None])
    assert (record.open, record.restarted, record.token_ids) == (kept, restarted, [1, 2] if kept else [])
