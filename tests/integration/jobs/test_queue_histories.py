"""Random histories of the queue beside a model of it; `make fuzz` has more of them."""

from __future__ import annotations

import pytest

from loadtests.fuzz.queue_histories import run_histories


@pytest.mark.timeout(900)
def test_histories(server_url: str) -> None:
    run_histories(server_url, 40, 1)
