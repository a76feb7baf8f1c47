"""What clients of online requests feel, measured at a replica and at the front."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from conserve.config import DEFAULT_CLASS, SloSettings
from conserve.engine.offline_request import CLASS_FIELD
from conserve.harvest.recent_latency import RecentLatency
from conserve.policy.overload import Reason
from conserve.telemetry import online_metrics as metrics
from conserve.telemetry.bounded_label import OTHER
from conserve.telemetry.metric import Recorder, Totals
from conserve.telemetry.spans import QUEUE_TIME, REQUEST_SPAN
from deployments.errors import is_error, is_refusal

OUTCOMES: Final = ("answered", "failed", "abandoned", "refused", "overload")


def class_of(request: Any, slo: SloSettings) -> str:
    """The class that a request names, as a label: `other` where there is none of that name."""
    name = getattr(request, CLASS_FIELD, None)
    if name is None:
        return DEFAULT_CLASS
    return name if isinstance(name, str) and (name in slo.classes or name == DEFAULT_CLASS) else OTHER


class OnlineMetrics:
    """Of the online requests of one replica.

    Args:
        recorder: Takes them.
        slo: The classes of online requests with their objectives.
        clock: Seconds, monotonic.

    Attributes:
        latency: What they have felt in the last seconds.
        on_gap: Told of the time between two outputs, in seconds.
    """

    def __init__(
        self,
        recorder: Recorder,
        slo: SloSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self.latency = RecentLatency()
        self.on_gap: Callable[[float], None] = lambda gap_s: None
        self._slo = slo
        classes = slo.by_priority()
        self._names = list(classes)
        self._objectives_s = {name: (one.ttft_slo_ms / 1e3, one.tbt_slo_ms / 1e3) for name, one in classes.items()}
        for name in classes:
            for outcome in OUTCOMES:
                recorder.add(metrics.ONLINE_REQUESTS, 0, name, outcome)
            for reason in Reason:
                recorder.add(metrics.ONLINE_OVERLOAD, 0, name, reason)
            recorder.add(metrics.ONLINE_FIRST_TOKENS, 0, name)
            recorder.add(metrics.ONLINE_LATE_FIRST_TOKENS, 0, name)
        self._totals = Totals(recorder)
        self._next_tokens = {name: [0, 0] for name in classes}

    def note_queued(self, priority: int, queued_s: float) -> None:
        """A request of this priority has waited so long in the engine until it was taken in."""
        self._recorder.observe(metrics.ONLINE_QUEUE, queued_s, self._name(priority))
        REQUEST_SPAN.get().set(QUEUE_TIME, queued_s)

    def note_gap(self, priority: int, gap_s: float) -> None:
        """Further tokens of a request of this priority came so long after those before."""
        name, recorder = self._name(priority), self._recorder
        recorder.observe(metrics.ONLINE_TBT, gap_s, name)
        self.latency.note_tbt(name, self._clock(), gap_s)
        self.on_gap(gap_s)
        # Added up, and reported with the others once a second.
        counts = self._next_tokens[name]
        counts[0] += 1
        counts[1] += gap_s > self._objectives_s[name][1]

    def report(self) -> None:
        """Says what was counted; to be called every second or so."""
        for name, (all_, late) in self._next_tokens.items():
            self._totals.report(metrics.ONLINE_NEXT_TOKENS, all_, name)
            self._totals.report(metrics.ONLINE_LATE_NEXT_TOKENS, late, name)

    def _name(self, priority: int) -> str:
        return self._names[min(priority, len(self._names) - 1)]

    def refuse(self, request: Any) -> None:
        """A request was refused before the engine has seen it."""
        self._recorder.add(metrics.ONLINE_REQUESTS, 1, class_of(request, self._slo), "refused")

    def note_overload(self, request: Any, reason: Reason) -> None:
        """A request was refused for want of capacity."""
        name = class_of(request, self._slo)
        self._recorder.add(metrics.ONLINE_REQUESTS, 1, name, "overload")
        self._recorder.add(metrics.ONLINE_OVERLOAD, 1, name, reason)

    async def follow(
        self, request: Any, came_s: float, responses: AsyncGenerator[Any, None]
    ) -> AsyncGenerator[Any, None]:
        """Passes an answer on and measures it. An answer that is not streamed has an end, and no pieces.

        Args:
            request: Its class was checked.
            came_s: When it came, by `clock`.
            responses: The answer.
        """
        name = class_of(request, self._slo)
        recorder, clock = self._recorder, self._clock
        ttft_slo_s, _ = self._objectives_s[name]
        is_streamed = bool(getattr(request, "stream", False))
        outcome = "abandoned"
        has_begun = False
        try:
            async with aclosing(responses):
                async for response in responses:
                    now_s = clock()
                    if is_error(response):
                        outcome = "refused" if is_refusal(response) else "failed"
                    elif is_streamed and not has_begun:
                        has_begun = True
                        recorder.observe(metrics.ONLINE_TTFT, now_s - came_s, name)
                        self.latency.note_ttft(name, now_s, now_s - came_s)
                        recorder.add(metrics.ONLINE_FIRST_TOKENS, 1, name)
                        recorder.add(metrics.ONLINE_LATE_FIRST_TOKENS, now_s - came_s > ttft_slo_s, name)
                    yield response
            if outcome == "abandoned":
                outcome = "answered"
                recorder.observe(metrics.ONLINE_E2E, clock() - came_s, name)
        except Exception:
            outcome = "failed"
            raise
        finally:
            recorder.add(metrics.ONLINE_REQUESTS, 1, name, outcome)
