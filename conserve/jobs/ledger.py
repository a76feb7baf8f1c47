"""What each tenant has of its quotas: taken with a limit, given back once, whatever is repeated or lost meanwhile.

Every batch that has not ended and every file is a holder with amounts of its own; what a tenant uses is their sum. Both
change in one script, and amounts are set, not added: a call that is repeated changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from redis.asyncio import Redis

from conserve.config import TenantSettings
from conserve.jobs.errors import QuotaExceededError
from conserve.jobs.keys import Keys
from conserve.jobs.scripts import Scripts


class Holding(NamedTuple):
    """Amounts: requests that are accepted and not done, the tokens that they take, files and their bytes.

    And batches that have not ended, and flex requests that are waited for.
    """

    requests: int = 0
    tokens: int = 0
    files: int = 0
    bytes: int = 0
    batches: int = 0
    flex: int = 0


class Limits(NamedTuple):
    """The most of each that a tenant may have; None: as much as it likes."""

    requests: int | None = None
    tokens: int | None = None
    files: int | None = None
    bytes: int | None = None
    batches: int | None = None
    flex: int | None = None


NO_HOLDING = Holding()
NO_LIMITS = Limits()


def limits_of(tenant: TenantSettings | None) -> Limits:
    """What the settings of a tenant allow it."""
    if tenant is None:
        return NO_LIMITS
    return Limits(
        requests=tenant.max_queued_requests,
        tokens=tenant.max_tokens_in_flight,
        files=tenant.max_files,
        bytes=tenant.max_bytes,
        batches=tenant.max_batches,
        flex=tenant.max_waiting_flex,
    )


class Ledger:
    """The holdings of batches and files, in Redis. Errors of Redis come through."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # As in `registry.BatchRegistry`.
        self._scripts = Scripts(redis)
        self._keys = [keys.held, keys.used, keys.active_batches, keys.flex, keys.flex_over]

    async def admit(
        self,
        batch_id: str,
        tenant: str,
        holding: Holding,
        limits: Limits,
        *,
        index: str | None,
        most: int,
        most_over: int | None = None,
    ) -> bool:
        """Makes a batch one of the active ones; False when `most` are. A flex request is in no `index`.

        Args:
            batch_id: What it is called.
            tenant: Whose it is.
            holding: What it has from now on.
            limits: What its tenant may have.
            index: Of the tenant's batches; None: it is a flex request.
            most: Active batches, or flex requests that are waited for if it is one.
            most_over: Flex requests that are over and not deleted yet; with more of them none is admitted.

        Raises:
            QuotaExceededError: its tenant would have too much.
        """
        args = [most, "" if most_over is None else most_over, *_to_args(batch_id, tenant, holding, limits)]
        answer = await self._scripts.run("admit", [*self._keys, *([index] if index else [])], args)
        if answer in (["active"], ["over"]):
            return False
        _check(answer, holding)
        return True

    async def attend(self, batch_ids: Collection[str]) -> None:
        """Says that flex requests are still waited for."""
        await self._scripts.run("attend", self._keys, batch_ids)

    async def unattended(self, silence_ms: int, unmarked: Collection[str]) -> list[str]:
        """Flex requests not attended to for so long, and those of `unmarked` that have left already."""
        return list(await self._scripts.run("unattended", self._keys, [silence_ms, *unmarked]))

    async def leave(self, batch_ids: Collection[str]) -> None:
        """Gives the room free of flex requests that are not waited for any more."""
        await self._scripts.run("leave", self._keys, batch_ids)

    async def hold(self, file_id: str, tenant: str, holding: Holding, limits: Limits = NO_LIMITS) -> None:
        """Sets what a file has.

        Raises:
            QuotaExceededError: it would have too much; it has what it had before.
        """
        _check(await self._scripts.run("hold", self._keys, _to_args(file_id, tenant, holding, limits)), holding)

    async def adjust(self, batches: Mapping[str, tuple[str, Holding]]) -> None:
        """Sets what active batches have (id -> tenant, amounts), limits or not: they were accepted."""
        if batches:
            args = [arg for one, (tenant, held) in batches.items() for arg in _to_args(one, tenant, held, NO_LIMITS)]
            await self._scripts.run("adjust", self._keys, args)

    async def drop(self, file_id: str) -> None:
        """Gives back what a file has."""
        await self._scripts.run("drop", self._keys, [file_id])

    async def retire(self, batch_id: str, index: str | None = None) -> None:
        """Takes a batch from the active ones (and from an index), and gives back what it has."""
        await self._scripts.run("retire", [*self._keys, *([index] if index else [])], [batch_id])

    async def retire_ended(self, batch_id: str, index: str) -> None:
        """As `retire`, of a batch that is kept for a while; puts it into the index of those."""
        await self._scripts.run("retire", [*self._keys, index], [batch_id, "ended"])

    async def tenant_of(self, holder: str) -> str | None:
        """Whose a batch or file is, as long as it has anything."""
        text = await self._redis.hget(self._keys[0], holder)
        return None if text is None else str(text).partition("|")[0]

    async def used(self, tenant: str) -> Holding:
        """What a tenant has in all."""
        found = await self._redis.hmget(self._keys[1], [f"{tenant}|{name}" for name in Holding._fields])
        return Holding(*(int(amount or 0) for amount in found))


def _to_args(holder: str, tenant: str, holding: Holding, limits: Limits) -> list[str | int]:
    return [holder, tenant, *holding, *("" if limit is None else limit for limit in limits)]


def _check(answer: list[str], holding: Holding) -> None:
    if answer:
        name, limit, used = answer
        raise QuotaExceededError(name, int(limit), int(used), int(getattr(holding, name)))
