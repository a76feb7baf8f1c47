"""What a replica is doing, in words for a person: for the status, and for its log, which Ray's dashboard shows."""

from __future__ import annotations

from typing import Final

import structlog

from conserve.harvest.messages import CapacityReport

log = structlog.get_logger(__name__)

LOG_PERIOD_S: Final = 60.0


def describe(report: CapacityReport) -> str:
    """One line, such as `answers 2 online requests, runs 6 batch requests in a window of 8`."""
    if report.state == "draining":
        return f"leaves: {_online(report) or 'no online requests'}, gives its batch work back"
    parts = [_online(report) or "no online requests", _batch_work(report)]
    if report.alone:
        parts.append("hears nothing of the controller")
    if report.stopped:
        parts.append(f"begins nothing of {_count(len(report.stopped), 'batch', 'batches')} for a while, for faults")
    return ", ".join(parts)


def _online(report: CapacityReport) -> str:
    answered, waiting = report.online_running, report.online_waiting
    if not answered and not waiting:
        return ""
    text = f"answers {_count(answered, 'online request')}"
    return f"{text} while {waiting} more {'waits' if waiting == 1 else 'wait'}" if waiting else text


def _batch_work(report: CapacityReport) -> str:
    running = report.offline_running
    if not report.window:
        return f"ends {_count(running, 'batch request')}, its window is shut" if running else "its window is shut"
    if not running:
        return f"no batch work for its window of {report.window}"
    return f"runs {_count(running, 'batch request')} in a window of {report.window}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


class ReplicaDiary:
    """Writes into the log what a replica is doing, when that has changed, once a minute at most."""

    def __init__(self) -> None:
        self._text = ""
        self._next_s = 0.0

    def note(self, report: CapacityReport, now_s: float) -> None:
        """It is doing this now, monotonic seconds."""
        text = describe(report)
        if text != self._text and now_s >= self._next_s:
            self._text, self._next_s = text, now_s + LOG_PERIOD_S
            log.info("replica", doing=text, kv_usage=round(report.kv_usage, 2))
