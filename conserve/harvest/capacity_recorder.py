"""Records what the replicas of a model harvest, and what they could have where there is not enough work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conserve.harvest.messages import CapacityReport
from conserve.jobs.capacity_store import CapacityStore, Watched
from conserve.policy.capacity import INTERVAL_S, CapacityHistory
from conserve.policy.harvest_rate import Proof, find_possible_rate
from conserve.telemetry.job_metrics import STRANDED_SEEN, STRANDED_USED
from conserve.telemetry.metric import NO_RECORDER, Recorder


class CapacityRecorder:
    """Takes the reports of one model's replicas, and keeps the history of what it could harvest.

    All of it is in Redis as of the last `flush`, and up to where each replica's counters are in it, so a recorder that
    takes over counts what was harvested in between. Of more than an interval without any, nothing is known.

    Args:
        store: Where it is kept.
        model: Of which one.
        tbt_slo_ms: How long the next tokens of online requests may wait.
        recorder: Takes measurements.
    """

    def __init__(self, store: CapacityStore, model: str, tbt_slo_ms: float, recorder: Recorder = NO_RECORDER) -> None:
        self._store = store
        self._model = model
        self._tbt_slo_ms = tbt_slo_ms
        self._recorder = recorder
        self._watched = Watched()
        self._changed: set[int] = set()
        self._forgotten: set[int] = set()
        self._is_loaded = False
        self.history = CapacityHistory()

    async def load(self) -> None:
        """Goes on from what is in Redis; to be called before anything else, again is no error."""
        if not self._is_loaded:
            self.history = await self._store.read_history(self._model)
            self._watched = await self._store.read_watched(self._model)
            self._is_loaded = True

    @property
    def proof(self) -> Proof:
        """What the replicas' own word has proved to be worth."""
        return self._watched.proof

    def observe(self, reports: Iterable[CapacityReport], now_ms: int, *, has_work: bool) -> None:
        """Takes the newest reports of all replicas.

        Args:
            reports: Of this model.
            now_ms: Now, Unix milliseconds.
            has_work: Whether requests of a batch wait to be claimed. If not, what was harvested is not all that could
                have been.
        """
        known = list(reports)
        before = self._watched
        passed_s = (now_ms - before.at_ms) / 1000 if before.at_ms is not None else 0.0
        self._watched = Watched(now_ms, {one.replica_id: _count_tokens(one) for one in known}, before.proof)
        if not known or not 0 < passed_s <= INTERVAL_S:
            return
        harvested = [_count_since(one, before.tokens.get(one.replica_id)) for one in known]
        possible = [self._find_possible(one) * passed_s for one in known]
        self._recorder.add(STRANDED_SEEN, sum(possible), self._model)
        self._recorder.add(STRANDED_USED, sum(harvested), self._model)
        if has_work:
            tokens = float(sum(harvested))
            if sum(possible) > 0:
                self._watched.proof = before.proof.add(tokens, sum(possible), passed_s)
        elif any(one.costs.known for one in known):
            # What ends now was computed before it ran short of work, and stands there with too little.
            share = before.proof.share
            tokens = sum(max(done, share * most) for done, most in zip(harvested, possible, strict=True))
        else:
            return
        self._changed.add(int(now_ms / 1000 // INTERVAL_S))
        self._forgotten.update(self.history.observe(now_ms / 1000, tokens, passed_s))

    async def flush(self) -> None:
        """Writes what is new. Where that fails it is written the next time."""
        intervals = self.history.intervals
        changed = {number: intervals[number] for number in self._changed if number in intervals}
        forgotten = set(self._forgotten)
        await self._store.write(self._model, changed, forgotten, self._watched)
        self._changed.clear()
        self._forgotten -= forgotten

    def _find_possible(self, report: CapacityReport) -> float:
        if report.state != "serving":
            return 0.0
        tokens: Sequence[float] = ()
        ended = report.offline_requests - report.offline_running
        if ended > 0 and report.offline_prompt_tokens > 0:
            tokens = (report.offline_prompt_tokens / ended, report.offline_output_tokens / ended)
        return find_possible_rate(report.costs, report.window, report.online_running, self._tbt_slo_ms, *tokens)


def _count_tokens(report: CapacityReport) -> int:
    return report.offline_prompt_tokens + report.offline_output_tokens


def _count_since(report: CapacityReport, before: int | None) -> int:
    """Tokens of a replica since its last report; its counters begin again with it."""
    tokens = _count_tokens(report)
    if before is None:
        return 0
    return tokens - before if tokens >= before else tokens
