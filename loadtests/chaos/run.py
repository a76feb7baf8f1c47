"""A run: load, one fault after the other, and what has become of everything in the end."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import structlog

from loadtests.chaos.batches import BatchClients
from loadtests.chaos.faults import Fault, NothingToHit
from loadtests.chaos.judgement import Incident, judge
from loadtests.chaos.kinds import find_missing
from loadtests.chaos.report import ChaosReport, FaultRecord
from loadtests.chaos.schedule import Draw, FaultType, draw_faults
from loadtests.chaos.stack import Stack
from loadtests.killing.chats import ChatClients
from loadtests.killing.ledger import Verdict

log = structlog.get_logger(__name__)

POLL_S: Final = 0.3
START_LIMIT_S: Final = 300.0
BATCHES_AT_A_TIME: Final = 2


class ChaosRun:
    """One run.

    Args:
        stack: In which things go wrong.
        engine: How it is called in the report.
        seed: Of the schedule.
        faults: What is drawn from.
        most: So many faults, or
        minutes: for so long.
        clients: Online ones.
        requests: Of a batch, fewest and most.
        on_fault: Hears of each fault once all is well again.
    """

    def __init__(
        self,
        stack: Stack,
        engine: str,
        seed: int,
        faults: Sequence[FaultType],
        *,
        most: int | None,
        minutes: float | None,
        clients: int,
        requests: tuple[int, int],
        on_fault: Callable[[FaultRecord], None] = lambda record: None,
    ) -> None:
        self._on_fault = on_fault
        self._stack = stack
        self._engine = engine
        self._seed = seed
        self._faults = faults
        self._most = most
        self._minutes = minutes
        self._clients = clients
        self._requests = requests
        self._incidents: list[Incident] = []
        self._not_injected: list[str] = []
        self._is_over = False

    async def run(self) -> ChaosReport:
        """Starts everything, injects, waits for the batches, checks, and stops everything.

        Raises:
            RuntimeError: something is wrong before the first fault.
        """
        client = self._stack.connect()
        try:
            await self._stack.start()
            verdict = Verdict(await self._stack.learn(client))
            self._chats = ChatClients(self._stack.base_url, self._clients, verdict.questions)
            self._batches = BatchClients(client, verdict, random.Random(self._seed), BATCHES_AT_A_TIME, self._requests)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._chats.run(lambda: self._is_over))
                group.create_task(self._batches.run(lambda: self._is_over))
                if None in await self._wait_until_well(time.monotonic(), START_LIMIT_S):
                    raise RuntimeError(f"the application does not work {START_LIMIT_S:g} s after its start")
                began_s = time.monotonic()
                for draw in self._list_draws(began_s):
                    await self._strike(draw, began_s)
                duration_s = time.monotonic() - began_s
                self._is_over = True
            forgotten = await self._batches.find_missing()
        finally:
            await client.close()
            await self._stack.stop()
        return self._report(verdict, forgotten, duration_s)

    def _list_draws(self, began_s: float) -> Iterator[Draw]:
        for draw in draw_faults(self._seed, self._faults):
            if self._most is not None and len(self._incidents) >= self._most:
                return
            if self._minutes is not None and time.monotonic() - began_s >= 60 * self._minutes:
                return
            yield draw

    async def _strike(self, draw: Draw, start_s: float) -> None:
        await asyncio.sleep(draw.pause_s)
        fault = self._stack.make_fault(draw)
        began_s = time.monotonic()
        silenced = await self._inject(fault, draw)
        if silenced is None:
            return
        healed_s = time.monotonic()
        record = FaultRecord(
            number=draw.number,
            name=draw.fault.name,
            at_s=began_s - start_s,
            hold_s=healed_s - began_s,
        )
        online_s, offline_s, processes_s = await self._wait_until_well(healed_s, self._stack.recovery_limit_s)
        record.online_back_s, record.offline_back_s, record.processes_back_s = online_s, offline_s, processes_s
        held = await asyncio.to_thread(self._stack.find_held, silenced)
        self._incidents.append(Incident(draw.fault, began_s, time.monotonic(), held, record))
        self._on_fault(record)

    async def _inject(self, fault: Fault, draw: Draw) -> frozenset[int] | None:
        try:
            try:
                silenced = await fault.inject()
                await asyncio.sleep(draw.hold_s if fault.lasts else 0.0)
                return silenced
            finally:
                await fault.heal()
        except (NothingToHit, subprocess.SubprocessError, OSError) as error:
            log.warning("a fault could not be injected", number=draw.number, name=draw.fault.name, error=str(error))
            self._not_injected.append(f"{draw.number}, {draw.fault.name}: {error}")
            return None

    async def _wait_until_well(self, since_s: float, limit_s: float) -> tuple[float | None, float | None, float | None]:
        """Seconds until a chat was answered that began since, until batches went on, and until nothing was missing."""
        found: list[float | None] = [None, None, None]
        while time.monotonic() < since_s + limit_s:
            missing = find_missing(await asyncio.to_thread(self._stack.sort_processes), self._stack.expected)
            now = (
                any(one.began_s > since_s and one.outcome == "answered" for one in self._chats.chats[-200:]),
                self._batches.has_advanced(since_s),
                not missing,
            )
            for place, is_well in enumerate(now):
                if is_well and found[place] is None:
                    found[place] = time.monotonic() - since_s
            if all(now):
                break
            await asyncio.sleep(POLL_S)
        else:
            log.warning("not all is well", missing=dict(missing), online=found[0], offline=found[1])
        return found[0], found[1], found[2]

    def _report(self, verdict: Verdict, forgotten: list[str], duration_s: float) -> ChaosReport:
        chats, batches = self._chats.chats, self._batches
        unexplained = judge(chats, self._incidents)
        records = [incident.record for incident in self._incidents]
        unanswered = [f"{chat.name}: {chat.reason}" for chat in chats if chat.outcome == "unanswered"]
        return ChaosReport(
            seed=self._seed,
            engine=self._engine,
            stack=list(self._stack.notes),
            faults=records,
            not_injected=self._not_injected,
            not_applicable=dict(self._stack.not_applicable),
            processes=dict(Counter(one.fault.target for one in self._incidents if one.fault.target)),
            chats=len(chats),
            chats_held_failed=sum(record.held_failed for record in records),
            chats_others_failed=sum(record.others_failed for record in records),
            chats_unanswered=unanswered,
            chats_unexplained=unexplained,
            longest_silence_s=max((chat.silence_s for chat in chats if chat.outcome != "unanswered"), default=0.0),
            batches=len(batches.accepted),
            batches_withdrawn=len(batches.withdrawn),
            requests=verdict.requests,
            lost=verdict.lost,
            twice=verdict.twice,
            wrong=verdict.wrong,
            unfinished=verdict.unfinished,
            forgotten=forgotten,
            unanswered=batches.unanswered,
            duration_s=duration_s,
        )
