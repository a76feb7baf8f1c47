"""Tenants share harvested tokens by weight: deficit round robin (Shreedhar and Varghese, 1996), on tokens.

A request that takes many tokens counts for as many; a tenant that has nothing to do saves nothing up. What it has taken
beyond its share it owes, also when it comes back: until the others have had as much, and `MOST_DEBT_ROUNDS` at most.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

QUANTUM_TOKENS: Final = 2_048
"""What a tenant of weight 1 gets in a round: the smaller, the more evenly tenants take turns."""
MOST_DEBT_ROUNDS: Final = 512
"""So many rounds who has left may owe at most: about a million tokens with weight 1."""
MOST_ROUNDS: Final = 8
"""Places of many replicas are dealt in about so many rounds, of as many quanta as that takes."""


class JobWork(msgspec.Struct, frozen=True, gc=False):
    """Requests of one batch that can be taken.

    Attributes:
        batch_id: Its id.
        ready: How many there are.
        request_tokens: What one of them takes, prompt and output, on average.
    """

    batch_id: str
    ready: int
    request_tokens: float


@dataclass
class DeficitRoundRobin:
    """Whose turn it is, from one round to the next.

    Attributes:
        deficits: Tokens that each tenant has left to take, by tenant.
        turns: Tenants with work, who comes next coming first.
        debts: Deficits below 0 of tenants that have no work now.
    """

    deficits: dict[str, float] = field(default_factory=dict)
    turns: deque[str] = field(default_factory=deque)
    debts: dict[str, float] = field(default_factory=dict)

    def deal(
        self, work: Mapping[str, Sequence[JobWork]], weights: Mapping[str, float], requests: int
    ) -> list[tuple[str, int]]:
        """Gives out so many places.

        Args:
            work: Of each tenant, in the order in which its batches go.
            weights: Of tenants; 1 where it is not said.
            requests: How many places there are.

        Returns:
            Batches and how many of their requests, in the order in which they are to be taken.
        """
        left = {tenant: deque(jobs) for tenant, jobs in work.items() if any(job.ready > 0 for job in jobs)}
        taken = dict.fromkeys(left, 0)
        self._follow(left)
        rounds = self._count_rounds(left, requests)
        quanta = {tenant: rounds * _quantum(tenant, weights) for tenant in left}
        dealt: list[tuple[str, int]] = []
        idle = 0  # Turns since somebody could afford a request.
        while requests > 0 and self.turns:
            tenant = self.turns[0]
            given = self._take_from(tenant, left[tenant], taken, dealt, requests)
            requests -= given
            if given:
                idle = 0
            if requests <= 0:
                break
            self.turns.popleft()
            if left[tenant]:
                # Its quantum is over: what it could not use is added to the next one.
                self.turns.append(tenant)
                self.deficits[tenant] += quanta[tenant]
                idle += 1
                if idle >= len(self.turns):
                    self._skip_rounds(left, quanta)
                    idle = 0
            else:
                del self.deficits[tenant]
        return _merge(dealt)

    def copy(self) -> DeficitRoundRobin:
        """One whose dealing changes nothing here."""
        return DeficitRoundRobin(dict(self.deficits), deque(self.turns), dict(self.debts))

    def list_ahead(self, weights: Mapping[str, float]) -> frozenset[str]:
        """Which of these tenants with work have had a round or more beyond another one of them."""
        rounds = {tenant: self.deficits.get(tenant, 0.0) / _quantum(tenant, weights) for tenant in weights}
        most = max(rounds.values(), default=0.0)
        return frozenset(tenant for tenant, left in rounds.items() if left <= most - 1.0 + 1e-9)

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to be remembered."""
        return not self.turns and not self.debts

    def charge(self, tenant: str, tokens: float) -> None:
        """Requests of a tenant have taken more than was expected (or less: negative)."""
        accounts = self.debts if tenant in self.debts else self.deficits
        if tenant in accounts:
            accounts[tenant] -= tokens

    def settle(self, tenants: Collection[str], used: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Takes note of who has work, and of the tokens that were really used since the last time.

        For who deals on copies, since what is dealt is not always taken. Only differences between tenants count, so all
        are moved by as many rounds as give the one that is furthest behind one quantum: credit does not pile up while
        nobody takes anything. Those who have no work any more are moved, too, until they owe nothing.

        Args:
            tenants: Those with work, waiting or running.
            used: Tokens, by tenant; what is given back is negative.
            weights: Of tenants; 1 where it is not said.
        """
        self._follow(tenants)
        for tenant, tokens in used.items():
            self.charge(tenant, tokens)
        quanta = {tenant: _quantum(tenant, weights) for tenant in [*self.deficits, *self.debts]}
        rounds = 1.0 - max((self.deficits[tenant] / quanta[tenant] for tenant in self.deficits), default=1.0)
        for tenant in self.deficits:
            self.deficits[tenant] += rounds * quanta[tenant]
        for tenant, debt in list(self.debts.items()):
            self.debts[tenant] = max(debt + rounds * quanta[tenant], -MOST_DEBT_ROUNDS * quanta[tenant])
            if self.debts[tenant] >= 0.0:
                del self.debts[tenant]

    def _follow(self, tenants: Collection[str]) -> None:
        """Who has no work is out; who is new comes last, with nothing to its credit."""
        self.turns = deque(tenant for tenant in self.turns if tenant in tenants)
        self.turns.extend(sorted(set(tenants) - set(self.turns)))
        self.debts |= {tenant: deficit for tenant, deficit in self.deficits.items() if tenant not in tenants}
        self.deficits = {
            tenant: self.deficits[tenant] if tenant in self.deficits else min(0.0, self.debts.pop(tenant, 0.0))
            for tenant in self.turns
        }

    def _count_rounds(self, left: Mapping[str, deque[JobWork]], requests: int) -> int:
        """So many rounds are gone through at once, so that a thousand replicas take no more turns than some do."""
        if not left:
            return 1
        usual = sum(QUANTUM_TOKENS / max(1.0, jobs[0].request_tokens) for jobs in left.values())
        return max(1, round(requests / max(usual, 1.0) / MOST_ROUNDS))

    def _take_from(
        self, tenant: str, jobs: deque[JobWork], taken: dict[str, int], dealt: list[tuple[str, int]], most: int
    ) -> int:
        """Takes as many requests as a tenant can afford, no more than `most`; how many."""
        given = 0
        while jobs and given < most:
            ready = jobs[0].ready - taken[tenant]
            if ready <= 0:
                jobs.popleft()
                taken[tenant] = 0
                continue
            tokens = jobs[0].request_tokens
            count = min(ready, most - given, math.floor(self.deficits[tenant] / tokens + 1e-9))
            if count <= 0:
                break
            self.deficits[tenant] -= count * tokens
            taken[tenant] += count
            given += count
            dealt.append((jobs[0].batch_id, count))
        while jobs and taken[tenant] >= jobs[0].ready:
            jobs.popleft()
            taken[tenant] = 0
        return given

    def _skip_rounds(self, left: Mapping[str, deque[JobWork]], quanta: Mapping[str, float]) -> None:
        """Rounds in which nobody could afford a request are gone through at once."""
        missing = [(left[tenant][0].request_tokens - self.deficits[tenant]) / quanta[tenant] for tenant in self.turns]
        rounds = math.floor(min(missing))
        if rounds > 0:
            for tenant in self.turns:
                self.deficits[tenant] += rounds * quanta[tenant]


def find_weight(tenant: str, weights: Mapping[str, float]) -> float:
    """The weight of a tenant: 1 where it is not said."""
    return max(weights.get(tenant, 1.0), 1e-6)


def _quantum(tenant: str, weights: Mapping[str, float]) -> float:
    return QUANTUM_TOKENS * find_weight(tenant, weights)


def _merge(dealt: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Neighbours of the same batch as one."""
    merged: list[tuple[str, int]] = []
    for batch_id, count in dealt:
        if merged and merged[-1][0] == batch_id:
            merged[-1] = (batch_id, merged[-1][1] + count)
        else:
            merged.append((batch_id, count))
    return merged
