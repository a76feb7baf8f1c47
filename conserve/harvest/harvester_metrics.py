"""Tells what a harvester does to whoever takes measurements."""

from __future__ import annotations

from typing import Final, Literal

from conserve.harvest.messages import CapacityReport
from conserve.policy.retry import FaultKind
from conserve.telemetry import harvest_metrics, job_metrics
from conserve.telemetry.metric import Recorder, Totals

_RESULTS: Final = {"output": "completed", "error": "failed"}
_RELEASED: Final = "released"


class HarvesterMetrics:
    """Of the harvester of one replica.

    Args:
        recorder: Takes them.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._totals = Totals(recorder)
        for result in _RESULTS.values():
            recorder.add(job_metrics.BATCH_REQUESTS, 0, result)
        for fault in (*FaultKind, _RELEASED):
            recorder.add(job_metrics.ATTEMPTS_ENDED, 0, str(fault))

    def report(self, report: CapacityReport) -> None:
        """What it tells the controller."""
        gauge, total = self._recorder.set, self._totals.report
        gauge(harvest_metrics.OFFLINE_WINDOW, report.window)
        gauge(harvest_metrics.HARVEST_ALONE, report.alone)
        if report.headroom_tokens_per_s is not None:
            gauge(harvest_metrics.HEADROOM, report.headroom_tokens_per_s)
        if report.online_forecast_per_s is not None:
            gauge(harvest_metrics.ONLINE_FORECAST, report.online_forecast_per_s)
        if report.slo_attainment is not None:
            gauge(harvest_metrics.MIXED_SLO_ATTAINMENT, report.slo_attainment)
        total(job_metrics.JOURNALED_TOKENS, report.journaled_tokens)
        total(job_metrics.RESUMED_REQUESTS, report.resumed_requests)
        total(job_metrics.REUSED_TOKENS, report.reused_tokens)
        for reason, count in report.restarts.items():
            total(job_metrics.RESTARTED_REQUESTS, count, reason)

    def count_result(self, kind: Literal["output", "error"]) -> None:
        """An attempt has ended with a result."""
        self._recorder.add(job_metrics.BATCH_REQUESTS, 1, _RESULTS[kind])

    def count_fault(self, kind: FaultKind | None) -> None:
        """An attempt has ended without one; None: nothing is held against the request."""
        self._recorder.add(job_metrics.ATTEMPTS_ENDED, 1, _RELEASED if kind is None else kind.value)
