"""What online requests have felt in the last seconds, for the report of a replica: percentiles, by class."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Final

from conserve.harvest.messages import LatencyNow

KEPT_S: Final = 10.0
MOST_KEPT: Final = 1_000
"""Of each kind in each class: with more, the newest."""

_Times = deque[tuple[float, float]]


class RecentLatency:
    """Of one replica. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._ttft: dict[str, _Times] = {}
        self._tbt: dict[str, _Times] = {}

    def note_ttft(self, slo_class: str, now_s: float, ttft_s: float) -> None:
        """A request of this class got its first token now, so long after it came."""
        self._ttft.setdefault(slo_class, deque(maxlen=MOST_KEPT)).append((now_s, ttft_s))

    def note_tbt(self, slo_class: str, now_s: float, gap_s: float) -> None:
        """Further tokens of a request of this class came now, so long after those before."""
        self._tbt.setdefault(slo_class, deque(maxlen=MOST_KEPT)).append((now_s, gap_s))

    def measure(self, now_s: float) -> dict[str, Any]:
        """The fields of a `CapacityReport` that say it. A class without tokens in this time is not there."""
        found = {}
        for name in sorted(self._ttft.keys() | self._tbt.keys()):
            first, further = _recent(self._ttft.get(name), now_s), _recent(self._tbt.get(name), now_s)
            if first or further:
                found[name] = LatencyNow(
                    ttft_p50_ms=_percentile_ms(first, 0.5),
                    ttft_p95_ms=_percentile_ms(first, 0.95),
                    tbt_p50_ms=_percentile_ms(further, 0.5),
                    tbt_p95_ms=_percentile_ms(further, 0.95),
                )
        return {"latency": found}


def _recent(times: _Times | None, now_s: float) -> list[float]:
    while times and times[0][0] < now_s - KEPT_S:
        times.popleft()
    return sorted(value for _, value in times or ())


def _percentile_ms(ordered_s: list[float], share: float) -> float | None:
    """By nearest rank: a value that has been."""
    return round(ordered_s[math.ceil(share * len(ordered_s)) - 1] * 1e3, 1) if ordered_s else None
