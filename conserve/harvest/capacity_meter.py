"""What a replica can say of its capacity beyond what its engine is doing: headroom, forecast, attainment."""

from __future__ import annotations

from typing import Any

from conserve.engine.contract import EngineStats
from conserve.policy.headroom import find_headroom
from conserve.policy.online_trend import OnlineTrend
from conserve.policy.slo_attainment import SloAttainment


class CapacityMeter:
    """Looks at one engine, some times a second.

    Args:
        tbt_slo_ms: How long the next tokens of online requests may take.
        max_num_seqs: Sequences in one iteration.
    """

    def __init__(self, tbt_slo_ms: float, max_num_seqs: int) -> None:
        self._tbt_slo_ms = tbt_slo_ms
        self._max_num_seqs = max_num_seqs
        self._trend = OnlineTrend()
        self._first, self._next = SloAttainment(), SloAttainment()

    def measure(self, stats: EngineStats, now_s: float) -> dict[str, Any]:
        """The fields of a `CapacityReport` that say it. What an engine does not know stands there as "not known".

        Args:
            stats: Of the engine, now.
            now_s: Now, monotonic.
        """
        trend = self._trend
        trend.observe(now_s, stats.online_requests, stats.online_running)
        self._first.observe(now_s, stats.first_tokens, stats.late_first_tokens)
        self._next.observe(now_s, stats.next_tokens, stats.late_next_tokens)
        shares = [one.share for one in (self._first, self._next) if one.share is not None]
        ended = stats.offline_requests - stats.offline_running
        shape: tuple[float, ...] = ()
        if ended > 0 and stats.offline_prompt_tokens > 0:
            shape = (stats.offline_prompt_tokens / ended, stats.offline_output_tokens / ended)
        headroom = find_headroom(stats.costs, trend.expected_running, self._tbt_slo_ms, *shape)
        slots = max(0.0, self._max_num_seqs - trend.expected_running)
        return {
            "online_rate_per_s": round(trend.rate_per_s, 3),
            "online_forecast_per_s": round(trend.forecast_per_s, 3),
            "headroom_tokens_per_s": None if headroom is None else round(headroom.tokens_per_s),
            "headroom_requests": None if headroom is None else round(min(headroom.requests, slots), 2),
            "slo_attainment": round(min(shares), 4) if shares else None,
        }
