"""Tells what waits in the queue, and what will be late, to whoever takes measurements."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from conserve.harvest.messages import CapacityReport
from conserve.jobs.batch import ActiveBatch, BatchStatus
from conserve.policy.laxity import Outlook
from conserve.telemetry import job_metrics as metrics
from conserve.telemetry.bounded_label import BoundedLabel
from conserve.telemetry.metric import Recorder


class QueueMetrics:
    """Of all batches. To be told every few seconds by the controller that is at work.

    Args:
        recorder: Takes them.
        tenants: Those that the settings name, which are told apart before others.
        models: The served ones.
    """

    def __init__(self, recorder: Recorder, tenants: Iterable[str], models: Sequence[str]) -> None:
        self._recorder = recorder
        self._tenant = BoundedLabel(metrics.MOST_TENANTS, tuple(tenants))
        self._models = models

    def report(
        self,
        batches: Sequence[ActiveBatch],
        outlooks: Mapping[str, Outlook],
        reports: Sequence[CapacityReport],
        now_ms: int,
    ) -> None:
        """What is the case now.

        Args:
            batches: All that have not ended, those of flex requests, too.
            outlooks: What will become of batches, by id.
            reports: What replicas say.
            now_ms: Now, Unix milliseconds.
        """
        gauge = self._recorder.set
        gauge(metrics.CONTROLLER_LEADS, 1)
        for model in self._models:
            gauge(metrics.REPLICAS, sum(report.model == model for report in reports), model)
        whole = [batch for batch in batches if batch.flex is None]
        gauge(metrics.FLEX_WAITING, sum(batch.outcome is None for batch in batches if batch.flex is not None))
        statuses = Counter(batch.status for batch in whole)
        for status in BatchStatus:
            if not status.ended:
                gauge(metrics.BATCHES, statuses[status], status.value)
        gauge(metrics.PAUSED_BATCHES, sum(batch.paused for batch in whole))
        gauge(metrics.DELAYED_BATCHES, sum(batch.delayed for batch in whole))
        self._report_tenants(batches, outlooks, now_ms)

    def _report_tenants(self, batches: Sequence[ActiveBatch], outlooks: Mapping[str, Outlook], now_ms: int) -> None:
        gauge = self._recorder.set
        ready: defaultdict[str, int] = defaultdict(int)
        leased: defaultdict[str, int] = defaultdict(int)
        age_s: defaultdict[str, float] = defaultdict(float)
        late_s: defaultdict[str, float] = defaultdict(float)
        late: defaultdict[str, int] = defaultdict(int)
        for batch in batches:
            if batch.status is not BatchStatus.IN_PROGRESS:
                continue
            tenant = self._tenant.of(batch.tenant)
            ready[tenant] += batch.ready
            leased[tenant] += batch.leased
            if batch.ready and not batch.paused:
                age_s[tenant] = max(age_s[tenant], (now_ms - batch.created_at_ms) / 1000)
            outlook = outlooks.get(batch.batch_id)
            if outlook is not None and outlook.laxity_s < 0:
                late[tenant] += 1
                late_s[tenant] = max(late_s[tenant], _find_lateness_s(batch, outlook))
        for tenant in ready:
            gauge(metrics.QUEUE_REQUESTS, ready[tenant], tenant, "ready")
            gauge(metrics.QUEUE_REQUESTS, leased[tenant], tenant, "leased")
            gauge(metrics.QUEUE_AGE, age_s[tenant], tenant)
            gauge(metrics.LATE_BATCHES, late[tenant], tenant)
            gauge(metrics.PREDICTED_LATENESS, late_s[tenant], tenant)


def _find_lateness_s(batch: ActiveBatch, outlook: Outlook) -> float:
    """How long after its window a batch that is late will end; `inf`: later than can be seen."""
    if outlook.end_s is None:
        return math.inf
    return max(0.0, outlook.end_s - batch.expires_at_ms / 1000)
