"""Where capacity reports and allotments hang: one small expiring entry per replica, written and read in bulk.

All keys share one hash tag, so that one script reads or writes them all. Entries expire by server time, and the times
that they carry are the server's, too; a reader never compares clocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import structlog
from pydantic import ValidationError
from redis.asyncio import Redis

from conserve.harvest.messages import SCHEMA_VERSION, AllotmentMessage, CapacityReport, ControllerRecord, ReplicaLine
from conserve.jobs.keys import Keys
from conserve.jobs.scripts import Scripts
from conserve.policy.allotment import Allotment

log = structlog.get_logger(__name__)

RECORD_TTL_MS: Final = 600_000
"""After so long without a controller, what tenants were ahead of each other counts for nothing any more."""
REWRITTEN_EACH_PART: Final = 0.25
"""Of the time that an allotment holds: one that stays the same is put up again after so much of it."""
EXTRA_TTL_MS: Final = 60_000
"""Replicas take long to start: what is wanted for deadlines stands while a controller comes back."""
BULK: Final = 1_000

Message = TypeVar("Message", ReplicaLine, AllotmentMessage, ControllerRecord)
_LINES: Final = msgspec.json.Decoder(list[ReplicaLine])
_encode: Final = msgspec.json.Encoder().encode


class BoardReading(NamedTuple):
    """What all replicas have reported that are there, by replica id, and the server's time in milliseconds."""

    now_ms: int
    replicas: list[ReplicaLine]


class CapacityBoard:
    """Reports and allotments of one deployment.

    Args:
        redis: a client with `decode_responses=True`.
        namespace: prefix of every key.
        ttl_ms: entries older than this are gone.
    """

    def __init__(self, redis: Redis, namespace: str, ttl_ms: int) -> None:
        self._redis: Any = redis  # Typed for every way of decoding; `connect` makes clients that decode to str.
        self._ttl_ms = ttl_ms
        prefix = f"{namespace}:{{capacity}}"
        keys = Keys(namespace)
        self._replicas_key = keys.replicas
        self._record_key = f"{prefix}:controller"
        self._reports = keys.report_prefix
        self._allotments = f"{prefix}:allotment:"
        self._extra = f"{prefix}:extra:"
        self._scripts = Scripts(redis)
        self._ahead_ms: int | None = None
        self._put_up: dict[str, tuple[Allotment, int]] = {}

    async def publish_report(self, report: CapacityReport) -> None:
        """Puts up what a replica says about itself, with the time."""
        # How far the server's clock is ahead is known from the answer before; it is asked with each report.
        at_ms = _monotonic_ms() + self._ahead_ms if self._ahead_ms is not None else 0
        report = report.model_copy(update={"at_ms": at_ms, "schema_version": SCHEMA_VERSION})
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._reports + report.replica_id, report.model_dump_json(exclude_defaults=True), px=self._ttl_ms)
            pipe.sadd(self._replicas_key, report.replica_id)
            pipe.time()
            *_, (seconds, microseconds) = await pipe.execute()
        self._ahead_ms = int(seconds) * 1_000 + int(microseconds) // 1_000 - _monotonic_ms()

    async def read(self) -> BoardReading:
        """What the controller goes by: of the reports that have not expired. Forgets replicas whose report has."""
        now_ms, lines = await self._read_lines()
        try:
            found = _LINES.decode(f"[{','.join(lines)}]")
        except msgspec.MsgspecError:
            # One of them: the others count.
            found = [line for text in lines if (line := _parse(ReplicaLine, text)) is not None]
        return BoardReading(now_ms, sorted(found, key=attrgetter("replica_id")))

    async def read_reports(self) -> list[CapacityReport]:
        """The reports that have not expired, by replica id. Forgets replicas whose report has."""
        reports = []
        for line in (await self._read_lines())[1]:
            try:
                reports.append(CapacityReport.model_validate_json(line))
            except ValidationError as error:
                log.warning("capacity report not understood", error=str(error))
        return sorted(reports, key=attrgetter("replica_id"))

    async def _read_lines(self) -> tuple[int, list[str]]:
        now_ms, text = await self._scripts.run("read_reports", [self._replicas_key], [self._reports])
        return int(now_ms), text.split("\n") if text else []

    async def remove_report(self, replica_id: str) -> None:
        """Takes a replica that leaves off the board."""
        await self._redis.delete(self._reports + replica_id, self._allotments + replica_id)
        await self._redis.srem(self._replicas_key, replica_id)

    async def publish_allotments(self, allotments: Mapping[str, Allotment], now_ms: int = 0) -> int:
        """Puts up the allotments of all replicas, by replica id; one that is there already only now and then.

        Args:
            allotments: All of them.
            now_ms: Now, by the clock of the server; 0: each is put up.

        Returns:
            How many were written.
        """
        renewed_ms = now_ms - round(REWRITTEN_EACH_PART * self._ttl_ms)
        due: list[tuple[str, Allotment]] = []
        for name, allotment in allotments.items():
            before = self._put_up.get(name)
            if before is None or not renewed_ms < before[1] <= now_ms or before[0] != allotment:
                due.append((name, allotment))
        for start in range(0, len(due), BULK):
            args: list[str | int | bytes] = [self._ttl_ms, self._allotments]
            for name, allotment in due[start : start + BULK]:
                args += (name, _encode(AllotmentMessage.of(allotment, now_ms)))
            await self._scripts.run("put_allotments", [self._replicas_key], args)
        # Those of replicas that are gone are forgotten.
        written = {name: (allotment, now_ms) for name, allotment in due}
        self._put_up = {name: written.get(name) or self._put_up[name] for name in allotments}
        return len(due)

    async def read_allotment(self, replica_id: str) -> Allotment | None:
        """The allotment of a replica, or None when there is none or it has expired."""
        return (await self.read_allotments([replica_id])).get(replica_id)

    async def read_allotments(self, replica_ids: Iterable[str]) -> dict[str, Allotment]:
        """The allotments of replicas that have one which has not expired, by replica id."""
        names = list(replica_ids)
        found: dict[str, Allotment] = {}
        for start in range(0, len(names), BULK):
            some = names[start : start + BULK]
            entries = await self._redis.mget([self._allotments + name for name in some])
            for name, entry in zip(some, entries, strict=True):
                message = _parse(AllotmentMessage, entry) if entry is not None else None
                if message is not None:
                    found[name] = message.to_allotment()
        return found

    async def publish_extra_replicas(self, model: str, count: int) -> None:
        """Says how many replicas of a model are wanted beyond those for online load."""
        await self._redis.set(self._extra + model, count, px=EXTRA_TTL_MS)

    async def read_extra_replicas(self, model: str) -> int:
        """How many are wanted; 0 where nobody has said so lately."""
        return int(await self._redis.get(self._extra + model) or 0)

    async def write_record(self, record: ControllerRecord) -> None:
        """Keeps what a controller that takes over goes on from."""
        await self._redis.set(self._record_key, _encode(record), px=RECORD_TTL_MS)

    async def read_record(self) -> ControllerRecord:
        """What the last controller has kept; a blank one where there is nothing that is understood."""
        entry = await self._redis.get(self._record_key)
        found = _parse(ControllerRecord, entry) if entry is not None else None
        return found or ControllerRecord()


def _parse(kind: type[Message], text: str) -> Message | None:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        log.warning("message not understood", kind=kind.__name__, error=str(error))
        return None


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
