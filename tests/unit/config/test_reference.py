"""`docs/settings.md` is what the settings say, and all of them say something."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from conserve.config import Settings
from conserve.config.reference import write_reference

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def list_settings(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The settings by their paths, as an application that sets nothing has them."""
    found = []
    for name, value in values.items():
        is_section = isinstance(value, dict) and value
        found += list_settings(value, f"{prefix}{name}.") if is_section else [f"{prefix}{name}"]
    return found


def test_the_page_is_what_the_settings_say() -> None:
    assert PAGE.read_text() == write_reference(), "python -m conserve.config.reference > docs/settings.md"


def test_every_setting_is_there_and_explained() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \| .*? \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    assert {path for path, _, meaning in rows if not meaning.strip()} == set()
    assert set(list_settings(Settings().to_args())) - {path for path, *_ in rows} == set()
