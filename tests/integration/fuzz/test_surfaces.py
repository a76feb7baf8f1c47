"""A little of each surface, always the same; `make fuzz` has twenty thousand inputs and more."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.fuzz.__main__ import Surface, main, try_surface
from loadtests.fuzz.report import SurfaceReport
from loadtests.fuzz.wild import Wild

# Each starts an application or a process of its own; on a busy machine that takes long.
pytestmark = pytest.mark.timeout(600)

INPUTS = {
    Surface.HTTP: 300,
    Surface.RAW_HTTP: 200,
    Surface.GRPC: 300,
    Surface.JSONL: 1_000,
    Surface.TRACES: 1_000,
    Surface.QUEUE: 100,
}


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    disabled = logging.root.manager.disable
    yield
    logging.disable(disabled)


@pytest.mark.parametrize("surface", list(Surface))
def test_nothing_is_wrong_with_a_surface(surface: Surface) -> None:
    report = try_surface(surface, INPUTS[surface], seed=1)
    assert report.faults == []
    assert report.fault_count == 0
    assert report.inputs >= INPUTS[surface]
    assert sum(report.outcomes.values()) == report.inputs


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([Surface.TRACES], inputs=100, seed=3, out=tmp_path)
    assert "traces" in capsys.readouterr().out
    (surface,) = json.loads((tmp_path / "fuzz.json").read_text())["surfaces"]
    report = SurfaceReport.model_validate(surface)
    assert (report.surface, report.seed, report.inputs >= 100) == ("traces", 3, True)


def test_wild_values_follow_from_their_seed() -> None:
    def draw(seed: int) -> list[bytes]:
        wild = Wild(random.Random(seed))
        return [wild.write(wild.mutate({"a": [1, {"b": "text"}], "c": None})) for _ in range(200)]

    assert draw(1) == draw(1) != draw(2)
    assert any(b'"a": [1,' in one and b"NaN" in one for one in draw(1))
