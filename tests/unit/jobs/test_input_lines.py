from __future__ import annotations

import json
from pathlib import Path

import pytest

from conserve.jobs.files import FileStore
from conserve.jobs.input_lines import InputLines

FILE = "file-0123456789abcdef"


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_lines_are_found_by_number(tmp_path: Path, end: bytes) -> None:
    store = FileStore(str(tmp_path))
    names = ["a", "ü" * 2_000_000, "c"]
    with store.storage.create(store.file_path(FILE)) as file:
        file.write(b"\n".join(json.dumps({"custom_id": name}).encode() for name in names) + end)
    lines = InputLines(store, FILE)
    assert [lines.custom_id(number) for number in (3, 1, 2)] == ["c", "a", names[1]]
    with pytest.raises(OSError, match="before line 4"):
        lines.custom_id(4)
