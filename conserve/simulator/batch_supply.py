"""Batches for a cluster: the controller's rounds and each replica's claims, by the policies of `conserve.harvest`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from conserve.policy.allotment import Allotment, Placement, allot
from conserve.policy.capacity import SteadyCapacity
from conserve.policy.fair_shares import FairShares, JobUse
from conserve.policy.laxity import WorkLeft, look_ahead
from conserve.policy.ordering import JobDemand, list_late, order_jobs
from conserve.policy.replica_capacity import ReplicaCapacity
from conserve.policy.turns import ShareTurns
from conserve.policy.window import WindowRule, fit_requests
from conserve.simulator.replica import Replica
from conserve.simulator.request import SimRequest
from conserve.simulator.supply import FIRST_NUMBER, begin_anew
from conserve.simulator.workload import OfflineShape

REPORT_PERIOD_S: Final = 0.25
"""Time between two rounds of the controller: `harvest.report_period_ms`."""
ALLOTMENT_TTL_S: Final = 5.0
"""`harvest.allotment_ttl_ms`."""
RATE_WEIGHT: Final = 0.02
"""Of the latest round in the rate of harvested tokens that urgencies go by."""


class Outage(NamedTuple):
    """Without a controller."""

    begins_s: float
    ends_s: float


@dataclass(frozen=True)
class SimBatch:
    """A batch that is there from `created_s` on and has to be done by `expires_s`."""

    batch_id: str
    shape: OfflineShape
    requests: int
    created_s: float = 0.0
    expires_s: float = 86_400.0
    tenant: str = "default"
    priority: int = 0
    prefix: str = ""


@dataclass
class _Progress:
    batch: SimBatch
    drawn: int = 0
    done: int = 0
    running: int = 0
    used_tokens: float = 0.0
    returned: list[SimRequest] = field(default_factory=list)
    finished_s: float | None = None

    @property
    def ready(self) -> int:
        return self.batch.requests - self.drawn + len(self.returned)


class BatchSupply:
    """Batches, shared out by the controller's rule.

    Args:
        batches: All that there are.
        rule: When a replica's window is open, and how wide.
        seed: Decides the lengths of requests.
        weights: Of tenants; 1 where it is not said.
        period_s: Time between two rounds of the controller. It goes by what replicas have reported one round before.
        outage: There is no controller in this time; the next one goes on from what the last one has kept.
        allotment_ttl_s: A replica goes alone when it has heard nothing for so long.
    """

    def __init__(
        self,
        batches: Sequence[SimBatch],
        rule: WindowRule,
        seed: int,
        weights: Mapping[str, float] | None = None,
        period_s: float = REPORT_PERIOD_S,
        outage: Outage | None = None,
        allotment_ttl_s: float = ALLOTMENT_TTL_S,
    ) -> None:
        self.period_s = period_s
        self._rule = rule
        self._progress = {batch.batch_id: _Progress(batch) for batch in batches}
        self._draws = {batch.batch_id: batch.shape.draw(seed * 1_000 + number) for number, batch in enumerate(batches)}
        self._weights = dict(weights or {})
        self._shares = FairShares(weights)
        self._placement = Placement()
        self._reports: list[ReplicaCapacity] = []
        self._windows: dict[str, int] = {}
        self._outage = outage
        self._ttl_s = allotment_ttl_s
        self._is_away = False
        self._alone: dict[str, FairShares] = {}
        self._allotments: dict[str, Allotment] = {}
        self._turns: dict[str, ShareTurns] = {}
        self._dropped: set[str] = set()
        self._running: dict[str, Counter[str]] = defaultdict(Counter)
        self._at: dict[int, str] = {}
        self._request_tokens = {batch.batch_id: batch.shape.mean_tokens for batch in batches}
        self._number = FIRST_NUMBER
        self._rate = 0.0
        self._used_before = 0.0

    @property
    def finished_s(self) -> dict[str, float | None]:
        """When each batch was done; None for those that are not."""
        return {batch_id: progress.finished_s for batch_id, progress in self._progress.items()}

    @property
    def used_tokens(self) -> dict[str, float]:
        """Tokens of finished requests, by batch."""
        return {batch_id: progress.used_tokens for batch_id, progress in self._progress.items()}

    def control(self, replicas: Sequence[Replica], now_s: float) -> None:
        """One round of the controller: reports and batches in, allotments out."""
        active = [each for each in self._progress.values() if each.batch.created_s <= now_s and not each.finished_s]
        urgencies = self._find_urgencies(active, now_s)
        demands = [
            JobDemand(
                each.batch.batch_id,
                "model",
                each.batch.created_s,
                each.batch.expires_s,
                each.ready,
                each.batch.priority,
                each.batch.tenant,
                each.batch.shape.mean_tokens,
                prefix=each.batch.prefix,
                urgency=urgencies.get(each.batch.batch_id, 0.0),
            )
            for each in active
        ]
        uses = {
            each.batch.batch_id: JobUse(
                each.batch.tenant, "model", each.used_tokens + each.running * each.batch.shape.mean_tokens
            )
            for each in active
        }
        reports, self._reports = self._reports, [replica.report(now_s) for replica in replicas]
        outage = self._outage
        if outage is not None and outage.begins_s <= now_s < outage.ends_s:
            self._is_away = True
            if now_s >= outage.begins_s + self._ttl_s:
                self._decide_alone(demands, uses)
            return
        if self._is_away:
            self._take_over()
        self._shares.settle(demands, uses)
        self._follow(
            allot(
                reports or self._reports,
                self._shares,
                self._rule,
                self._windows,
                list_late(demands),
                self._placement,
            )
        )

    def _decide_alone(self, demands: Sequence[JobDemand], uses: Mapping[str, JobUse]) -> None:
        """Each replica decides by the same rule for itself."""
        decided: dict[str, Allotment] = {}
        for report in self._reports:
            shares = self._alone.setdefault(report.replica_id, FairShares(self._weights))
            shares.settle(demands, uses)
            decided |= allot([report], shares, self._rule, self._windows)
        self._follow(decided)

    def _take_over(self) -> None:
        """Another controller goes on."""
        record = self._shares.record()
        self._shares, self._placement = FairShares(self._weights), Placement()
        self._shares.restore(record)
        self._placement.restore(self._allotments, "model")
        self._is_away = False

    def _follow(self, allotments: dict[str, Allotment]) -> None:
        for name, allotment in allotments.items():
            before = self._allotments.get(name)
            if before is None or before.jobs != allotment.jobs or name in self._dropped:
                self._turns[name] = ShareTurns(allotment.jobs)
                self._dropped.discard(name)
        self._windows = {name: allotment.window for name, allotment in allotments.items()}
        self._allotments = allotments

    def top_up(self, replica: Replica, now_s: float) -> None:
        """A replica claims what its allotment leaves room for: late batches first, then in turns."""
        allotment = self._allotments.get(replica.name)
        if allotment is None:
            return
        running = replica.state.offline_running
        for share in allotment.late:
            room = min(share.most, max(allotment.window, allotment.floor) - running)
            room = self._limit_by_tokens(replica, allotment, share.batch_id, room)
            running += self._claim(replica, share.batch_id, room, now_s)
        turns = self._turns[replica.name]
        while (turn := turns.current) is not None:
            room = min(allotment.window - running, turn.most)
            room = self._limit_by_tokens(replica, allotment, turn.batch_id, room)
            if room <= 0:
                return
            taken = self._claim(replica, turn.batch_id, room, now_s)
            running += taken
            turns.take(turn.batch_id, taken)
            if taken < room:
                turns.drop(turn.batch_id)
                self._dropped.add(replica.name)

    def finish(self, request: SimRequest, now_s: float) -> None:
        """A request is done."""
        progress = self._progress[request.batch_id]
        self._running[self._at.pop(request.number)][request.batch_id] -= 1
        progress.done += 1
        progress.running -= 1
        progress.used_tokens += request.prompt_tokens + request.output_tokens
        if progress.done >= progress.batch.requests:
            progress.finished_s = now_s

    def give_back(self, requests: Sequence[SimRequest], now_s: float) -> None:
        """Requests of a replica that has failed begin anew somewhere."""
        for request in requests:
            progress = self._progress[request.batch_id]
            self._running[self._at.pop(request.number)][request.batch_id] -= 1
            progress.running -= 1
            progress.returned.append(begin_anew(request))

    def _claim(self, replica: Replica, batch_id: str, most: int, now_s: float) -> int:
        progress = self._progress[batch_id]
        count = max(0, min(most, progress.ready))
        for _ in range(count):
            if progress.returned:
                request = progress.returned.pop()
            else:
                progress.drawn += 1
                self._number += 1
                prompt, output, prefix, prefix_tokens = next(self._draws[batch_id])
                request = SimRequest(
                    self._number,
                    now_s,
                    prompt,
                    output,
                    online=False,
                    prefix=prefix,
                    prefix_tokens=prefix_tokens,
                    batch_id=batch_id,
                )
            progress.running += 1
            self._running[replica.name][batch_id] += 1
            self._at[request.number] = replica.name
            replica.feed(request, now_s)
        return count

    def _limit_by_tokens(self, replica: Replica, allotment: Allotment, batch_id: str, room: int) -> int:
        running = self._running[replica.name]
        fitting = fit_requests(allotment.window_tokens, self._request_tokens, running, batch_id)
        return room if fitting is None else min(room, fitting)

    def _find_urgencies(self, active: Sequence[_Progress], now_s: float) -> dict[str, float]:
        used = sum(each.used_tokens for each in self._progress.values())
        rate = (used - self._used_before) / self.period_s
        self._used_before = used
        self._rate = rate if not self._rate else self._rate + RATE_WEIGHT * (rate - self._rate)
        if self._rate <= 0:
            return {}
        by_id = {each.batch.batch_id: each for each in active}
        ordered = order_jobs(
            JobDemand(each.batch.batch_id, "model", each.batch.created_s, each.batch.expires_s, each.ready)
            for each in active
        )
        works = [
            WorkLeft(
                job.batch_id,
                job.expires_at,
                max(0.0, _count_tokens(by_id[job.batch_id].batch) - by_id[job.batch_id].used_tokens),
            )
            for job in ordered
        ]
        outlooks = look_ahead(works, SteadyCapacity(self._rate, now_s), now_s)
        return {batch_id: outlook.urgency for batch_id, outlook in outlooks.items()}


def _count_tokens(batch: SimBatch) -> float:
    return batch.requests * batch.shape.mean_tokens
