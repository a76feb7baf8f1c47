"""The process is killed at each line of the assembly in turn: what there is afterwards is whole, or is not there."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from conserve.jobs import assembly, storage
from conserve.jobs.assembly import assemble, delete_leftovers, file_id_of
from conserve.jobs.batch import ActiveBatch, BatchStatus
from conserve.jobs.claims import StoredResult
from conserve.jobs.files import FileStore
from conserve.jobs.results import format_output

BATCH_ID, INPUT_ID = "batch_12345678", "file-12345678"
MAX_LINE_BYTES = 1_000
CODE = {assembly.__file__, storage.__file__}
MOST_LINES = 5_000


def make_store(folder: Path) -> tuple[FileStore, ActiveBatch, dict[int, StoredResult]]:
    """A batch of three lines: one in a segment, one failed in the queue, one never run."""
    store = FileStore(str(folder))
    lines = [json.dumps({"custom_id": f"id-{i}"}).encode() + b"\n" for i in (1, 2, 3)]
    with store.storage.create(store.file_path(INPUT_ID)) as file:
        file.write(b"".join(lines))
    content = format_output(BATCH_ID, 1, "id-1", 200, "req-1", {"text": "hello"})
    with store.storage.create(store.segment_path(BATCH_ID, "w-1")) as file:
        file.write(content)
    results = {
        1: StoredResult("output", "w-1", 0, len(content)),
        2: StoredResult("error", None, code="poison_request", message="given up"),
    }
    batch = ActiveBatch(
        batch_id=BATCH_ID,
        status=BatchStatus.FINALIZING,
        created_at_ms=1,
        expires_at_ms=2,
        cancelling_at_ms=None,
        endpoint="/v1/chat/completions",
        input_file_id=INPUT_ID,
        model="m",
        total=3,
        completed=1,
        failed=1,
        ready=0,
        leased=0,
        outcome=BatchStatus.EXPIRED,
    )
    return store, batch, results


def kill_at(nth: int) -> None:
    """Ends this process by SIGKILL before the nth line of the code under test is run."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in CODE:
            return None
        if event == "line":
            count += 1
            if count == nth:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def run_killed(folder: Path, nth: int) -> bool:
    """Assembles in a process of its own; True when it was killed, False when it came to its end before."""
    process = os.fork()
    if process == 0:
        try:
            store, batch, results = FileStore(str(folder)), *make_store(folder)[1:]
            kill_at(nth)
            assemble(store, batch, results, MAX_LINE_BYTES)
        finally:
            os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def read_final(folder: Path) -> dict[str, bytes]:
    """What is there under final names."""
    names = {kind: f"files/{file_id_of(BATCH_ID, kind)}" for kind in ("output", "error")}
    names["manifest"] = f"manifests/{BATCH_ID}.json"
    return {kind: (folder / name).read_bytes() for kind, name in names.items() if (folder / name).exists()}


def test_a_kill_at_any_line_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    store, batch, results = make_store(whole)
    manifest = assemble(store, batch, results, MAX_LINE_BYTES)
    expected = read_final(whole)
    assert expected.keys() == {"output", "error", "manifest"}
    seen = set()
    for nth in range(1, MOST_LINES):
        folder = tmp_path / str(nth)
        killed = run_killed(folder, nth)
        found = read_final(folder)
        assert found.items() <= expected.items(), f"half a file after a kill at line {nth}"
        assert "manifest" not in found or len(found) == 3
        seen.add(frozenset(found))
        again = make_store(folder)[0]
        assert assemble(again, batch, results, MAX_LINE_BYTES) == manifest
        assert read_final(folder) == expected
        delete_leftovers(again, BATCH_ID)
        assert not list(folder.rglob("*.tmp")), "nothing else is left behind"
        if not killed:
            break
    else:
        raise AssertionError("it never came to its end")
    assert {frozenset(), frozenset(expected)} <= seen
