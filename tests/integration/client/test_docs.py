"""Every example of docs/client.md, run as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from conserve import Client
from tests.integration.bench import MODEL, make_line

PAGE = Path(__file__).parents[3] / "docs" / "client.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(
    base_url: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [make_line("a1"), make_line("a2", body={"model": MODEL, "messages": []})]
    Path("my.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    example = EXAMPLES[number].replace("http://127.0.0.1:8000", base_url)
    assert example != EXAMPLES[number]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(example, f"{PAGE.name}[{number}]", "exec"), names)
    for name in ("client", "openai"):  # What the end of a program would close.
        if isinstance(names.get(name), Client | OpenAI):
            names[name].close()
    if "print" in example:
        assert capsys.readouterr().out


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 6
