from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from conserve.harvest.messages import CapacityReport
from conserve.harvest.replica_text import LOG_PERIOD_S, ReplicaDiary, describe
from conserve.telemetry.logs import configure_service_logs


def make_report(**changes: Any) -> CapacityReport:
    values: dict[str, Any] = {"replica_id": "r1", "model": "m", "state": "serving", "window": 8}
    return CapacityReport(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "no online requests, no batch work for its window of 8"),
        (
            {"online_running": 2, "online_waiting": 1, "offline_running": 6},
            "answers 2 online requests while 1 more waits, runs 6 batch requests in a window of 8",
        ),
        ({"online_running": 1, "window": 0}, "answers 1 online request, its window is shut"),
        (
            {"online_waiting": 3, "window": 0, "offline_running": 1},
            "answers 0 online requests while 3 more wait, ends 1 batch request, its window is shut",
        ),
        (
            {"alone": True, "stopped": ("a", "b"), "offline_running": 1},
            "no online requests, runs 1 batch request in a window of 8, hears nothing of the controller, "
            "begins nothing of 2 batches for a while, for faults",
        ),
        ({"state": "draining", "online_running": 1}, "leaves: answers 1 online request, gives its batch work back"),
    ],
)
def test_it_says_what_a_replica_does(changes: dict[str, Any], text: str) -> None:
    assert describe(make_report(**changes)) == text


def test_the_log_gets_what_is_new_once_a_minute() -> None:
    configure_service_logs()  # Others may have been at work that show warnings alone.
    diary = ReplicaDiary()
    with capture_logs() as lines:
        for at_s, running in ((10.0, 0), (11.0, 1), (10 + LOG_PERIOD_S, 2), (10 + 3 * LOG_PERIOD_S, 2)):
            diary.note(make_report(offline_running=running), at_s)
    assert [line["doing"].split(", ")[1] for line in lines] == [
        "no batch work for its window of 8",
        "runs 2 batch requests in a window of 8",
    ]
