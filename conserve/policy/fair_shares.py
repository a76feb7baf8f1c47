"""What tenants have used and who comes next: keeps the deficits of `fairness` true to what really happened.

What is dealt out is an offer: a replica may take less of it, or go through it twice. So nothing is charged for what was
dealt, but for what batches are seen to have used: tokens of their finished requests, and those that are expected of the
running ones.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from conserve.policy.fairness import DeficitRoundRobin, JobWork, find_weight
from conserve.policy.ordering import JobDemand, order_jobs
from conserve.policy.prefix_groups import keep_prefixes_together

_EXACT: Final = 1e-9
_SIZES: Final = [float(round(1.25**power)) for power in range(80)]
"""Tokens of a request, roughly: each a quarter more than the one before, and the last beyond any."""
_BOUNDS: Final = [1.25 ** (power + 0.5) for power in range(79)]
"""From the first of them on it is the second of `_SIZES`, and so on."""


class JobUse(msgspec.Struct, frozen=True, gc=False):
    """Tokens that a batch has taken so far, and is expected to take for the `running` requests."""

    tenant: str
    model: str
    tokens: float
    running: int = 0


@dataclass(frozen=True)
class ShareRecord:
    """How far ahead or behind of each other tenants are: what who takes over goes on from.

    Attributes:
        deficits, debts: As in `DeficitRoundRobin`, by model and tenant.
        seen: Tokens that were charged already, by batch.
    """

    deficits: dict[str, dict[str, float]] = field(default_factory=dict)
    debts: dict[str, dict[str, float]] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)


class FairShares:
    """Shares places among the tenants of each model.

    Args:
        weights: Of tenants; 1 where it is not said.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        self._robins: dict[str, DeficitRoundRobin] = {}
        self._work: dict[str, dict[str, list[JobWork]]] = {}
        self._seen: dict[str, float] = {}
        self._prefixes: dict[str, dict[str, str]] = {}

    def record(self) -> ShareRecord:
        """What has been charged so far."""
        robins = self._robins.items()
        return ShareRecord(
            {model: dict(robin.deficits) for model, robin in robins if robin.deficits},
            {model: dict(robin.debts) for model, robin in robins if robin.debts},
            dict(self._seen),
        )

    def restore(self, record: ShareRecord) -> None:
        """Goes on from what another one has charged."""
        self._seen = dict(record.seen)
        self._robins = {
            model: DeficitRoundRobin(
                dict(record.deficits.get(model, {})),
                deque(record.deficits.get(model, {})),
                dict(record.debts.get(model, {})),
            )
            for model in {*record.deficits, *record.debts}
        }

    def settle(self, jobs: Sequence[JobDemand], uses: Mapping[str, JobUse]) -> None:
        """Takes note of the work that there is, and of what was used since the last time.

        Args:
            jobs: Batches with requests that can be taken, of all models.
            uses: Of all batches that have not ended, by id. One that is seen for the first time is charged nothing for
                what it has used before.
        """
        demands: dict[str, dict[str, list[JobDemand]]] = defaultdict(lambda: defaultdict(list))
        for job in order_jobs(jobs):
            if job.ready > 0:
                demands[job.model][job.tenant].append(job)
        used: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        at_work: dict[str, set[str]] = defaultdict(set)
        for batch_id, use in uses.items():
            used[use.model][use.tenant] += use.tokens - self._seen.get(batch_id, use.tokens)
            if use.running > 0:
                at_work[use.model].add(use.tenant)
        self._seen = {batch_id: use.tokens for batch_id, use in uses.items()}
        self._prefixes = {
            model: {job.batch_id: job.prefix for own in tenants.values() for job in own if job.prefix}
            for model, tenants in demands.items()
        }
        self._work = {
            model: {tenant: _to_work(own) for tenant, own in tenants.items()} for model, tenants in demands.items()
        }
        for model in {*self._robins, *demands, *at_work}:
            robin = self._robins.setdefault(model, DeficitRoundRobin())
            robin.settle(demands[model].keys() | at_work[model], used[model], self._weights)
            if robin.is_blank:
                del self._robins[model]

    def limit_places(self, model: str, places: int, among: Collection[str] | None = None) -> dict[str, int]:
        """The most of so many places that each tenant with work may take before it is its turn.

        That is its share by weight, rounded up, or down while it is ahead of another. Always rounded up, small shares
        would add up to all places, and that of a single place would be the place for good.

        Args:
            model: Whose places.
            places: How many.
            among: Only these tenants may take any; None: all that have work.
        """
        tenants = [tenant for tenant in self._work.get(model, {}) if among is None or tenant in among]
        weights = {tenant: find_weight(tenant, self._weights) for tenant in tenants}
        ahead = self._robins[model].list_ahead(weights) if tenants else frozenset[str]()
        total = sum(weights.values())
        shares = {tenant: places * weight / total for tenant, weight in weights.items()}
        return {
            tenant: math.floor(share + _EXACT) if tenant in ahead else math.ceil(share - _EXACT)
            for tenant, share in shares.items()
        }

    def list_prefixes(self, model: str) -> Mapping[str, str]:
        """What the prompts of batches of a model begin with, of those that have something in common with others."""
        return self._prefixes.get(model, {})

    def list_sizes(self, model: str) -> dict[str, float]:
        """What a request takes, prompt and output, on average, by batch of a model.

        Roughly, so that it does not change with each request that is done.
        """
        works = self._work.get(model, {})
        return {work.batch_id: _round(work.request_tokens) for own in works.values() for work in own}

    def deal(self, model: str, places: int) -> list[tuple[str, int]]:
        """Offers so many places: batches of a model and how many of their requests, in the order to take them in."""
        if model not in self._work:
            return []
        return self._robins[model].copy().deal(self._work[model], self._weights, places)


def _round(tokens: float) -> float:
    """To the nearest of numbers that are a quarter apart."""
    return _SIZES[bisect(_BOUNDS, tokens)]


def _to_work(jobs: Sequence[JobDemand]) -> list[JobWork]:
    return [JobWork(job.batch_id, job.ready, job.request_tokens) for job in keep_prefixes_together(jobs)]
