"""The process is killed in the midst of the assembly: what there is afterwards is whole, or is not there.

What a kill leaves are the files at that moment, which stay the same over many lines. So the files are looked at before
every line, and the process is killed before the first line of each state of theirs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
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
Tree = dict[str, bytes]
"""What is in a folder: files with their content, folders with none."""


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


def watch_lines(act: Callable[[int], None]) -> None:
    """Calls `act` with the number of each line of the code under test before it is run."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in CODE:
            return None
        if event == "line":
            count += 1
            act(count)
        return trace

    sys.settrace(trace)


def read_tree(folder: Path) -> Tree:
    """What another process finds in a folder. Of a temporary file the drawn part of its name is left out."""
    return {
        re.sub(r"\.[0-9a-f]{16}\.tmp$", ".tmp", str(path.relative_to(folder))): path.read_bytes()
        if path.is_file()
        else b""
        for path in folder.rglob("*")
    }


def watch_assembly(folder: Path) -> list[Tree]:
    """Assembles; returns what there was before each line, and in the end."""
    store, batch, results = make_store(folder)
    trees: list[Tree] = []
    before = sys.gettrace()
    watch_lines(lambda _: trees.append(read_tree(folder)))
    try:
        assemble(store, batch, results, MAX_LINE_BYTES)
    finally:
        sys.settrace(before)
    return [*trees, read_tree(folder)]


def run_killed(folder: Path, nth: int) -> bool:
    """Assembles in a process of its own that is killed before the nth line; False when it came to its end before."""
    store, batch, results = make_store(folder)

    def kill(number: int) -> None:
        if number == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        try:
            watch_lines(kill)
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
    trees = watch_assembly(tmp_path / "watched")
    first = [nth for nth, tree in enumerate(trees, 1) if nth == 1 or tree != trees[nth - 2]]
    seen = set()
    for nth in [*first, len(trees)]:
        folder = tmp_path / str(nth)
        assert run_killed(folder, nth) == (nth < len(trees))
        assert read_tree(folder) == trees[nth - 1], "a kill leaves the files that were there"
        found = read_final(folder)
        assert found.items() <= expected.items(), f"half a file after a kill at line {nth}"
        assert "manifest" not in found or len(found) == 3
        seen.add(frozenset(found))
        again = make_store(folder)[0]
        assert assemble(again, batch, results, MAX_LINE_BYTES) == manifest
        assert read_final(folder) == expected
        delete_leftovers(again, BATCH_ID)
        assert not list(folder.rglob("*.tmp")), "nothing else is left behind"
    assert {frozenset(), frozenset(expected)} <= seen
    assert any(".tmp" in name for tree in trees for name in tree)
