"""`docs/metrics.md` is what the definitions say."""

from __future__ import annotations

from pathlib import Path

from conserve.telemetry.catalogue import CATALOGUE
from conserve.telemetry.reference import write_reference

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_matches_the_definitions() -> None:
    assert PAGE.read_text() == write_reference(), "python -m conserve.telemetry.reference > docs/metrics.md"


def test_the_page_has_every_metric() -> None:
    text = PAGE.read_text()
    assert [name for name, metric in CATALOGUE.items() if f"`{metric.exported_name}`" not in text] == []
