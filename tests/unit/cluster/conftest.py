from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def folder() -> Path:
    """What an operator applies."""
    return REPOSITORY / "cluster"
