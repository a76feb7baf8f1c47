from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from conserve.engine.page import STOP_RESPONSES_S, Counters, EnginePage, Knobs
from conserve.engine.pass_control import count_in


def number(kind: type) -> dict[str, float]:
    """A different value for each field."""
    return {field.name: 1.5 + index for index, field in enumerate(fields(kind))}


def test_both_sides_see_what_the_other_has_written() -> None:
    front = EnginePage.create()
    try:
        scheduler = EnginePage(front.path)
        front.write_knobs(Knobs(**number(Knobs)))
        scheduler.write_counters(Counters(**number(Counters)))
        assert asdict(scheduler.read_knobs()) == number(Knobs)
        assert asdict(front.read_counters()) == number(Counters)
    finally:
        front.remove()


def test_a_new_page_changes_nothing_and_counts_nothing() -> None:
    page = EnginePage.create()
    try:
        assert page.read_knobs() == Knobs()
        assert page.read_counters() == Counters()
    finally:
        page.remove()


def test_another_process_reads_it() -> None:
    page = EnginePage.create()
    try:
        page.write_knobs(Knobs(ttft_slo_ms=math.inf))
        code = (
            "import sys; from pathlib import Path; from conserve.engine.page import EnginePage;"
            "print(EnginePage(Path(sys.argv[1])).read_knobs().ttft_slo_ms)"
        )
        answer = subprocess.run(
            [sys.executable, "-c", code, str(page.path)], capture_output=True, text=True, check=True
        )
        assert answer.stdout.strip() == "inf"
    finally:
        page.remove()


def test_it_works_on_after_its_file_is_removed() -> None:
    page = EnginePage.create()
    other = EnginePage(page.path)
    page.remove()
    page.remove()
    assert not page.path.exists()
    other.write_counters(Counters(iterations=7))
    assert page.read_counters().iterations == 7


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(bytes(8))
    with pytest.raises(ValueError, match="is no page of this version"):
        EnginePage(tmp_path / "page")


@pytest.mark.parametrize(
    ("value", "field"),
    [(0.0, "stops_in_1_ms"), (0.005, "stops_in_5_ms"), (0.0051, "stops_in_10_ms"), (9.0, "stops_late")],
)
def test_a_stop_is_counted_by_how_long_it_took(value: float, field: str) -> None:
    counters = Counters()
    count_in(STOP_RESPONSES_S, value, counters)
    assert counters == Counters(**{field: 1.0})
