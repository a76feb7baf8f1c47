"""Random histories of the queue beside a model of it: nothing is lost, nothing counts twice, whatever comes when.

Time does not pass by itself: leases run out and delays end by setting their moments, so that a history can be run again
as it was.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conserve.config import Settings
from conserve.jobs import embedded
from conserve.jobs.batch import Batch, RequestState
from conserve.jobs.claims import ClaimedRequest, ResultRef
from conserve.jobs.connection import connect
from conserve.jobs.journal import Journal, JournalEntry
from conserve.jobs.queue import JobQueue
from conserve.jobs.validation import RequestRange
from conserve.policy.retry import FailedAttempt, FaultKind
from loadtests.fuzz.corpus import CHAT, MODEL
from loadtests.fuzz.report import Fault, Findings

LINES = 6
LONG_MS = 60_000
"""Longer than any pause of the machine: a lease that lasts until a history ends it."""
STEPS = 40
HISTORIES_AT_ONCE = 8
WORKERS = ("alice", "bob")
MOST_ATTEMPTS, SUSPICIONS = 4, 2
REVISION = "0123456789abcdef"
FAULTS = [FaultKind.ENGINE_FAULT, FaultKind.ENGINE_DIED, FaultKind.TIMEOUT, FaultKind.UNUSABLE]


@dataclass
class Line:
    """What the model knows of a line. `fence` is the newest claim's, and stays when its lease has ended."""

    state: RequestState = RequestState.READY
    fence: str | None = None
    due: bool = False
    lapsed: bool = False
    begun: bool = False
    alone: bool = False
    failures: list[FaultKind] = field(default_factory=list)
    result: str | None = None
    journal: tuple[int, ...] = ()

    @property
    def claimable(self) -> bool:
        return self.state is RequestState.READY or (self.state is RequestState.DELAYED and self.due)


class Histories(RuleBasedStateMachine):
    """Claimers that repeat their calls, come late and vanish; a keeper that reaps; clients that cancel."""

    url: str
    operations = 0
    """Of all histories of the class."""

    claims = Bundle("claims")
    commits = Bundle("commits")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        jobs = {"redis_url": self.url, "namespace": f"h{secrets.token_hex(6)}", "retry_delay_s": 3_000}
        jobs |= {"max_retry_delay_s": 3_000, "max_retry_time_s": 1e6, "lease_ms": LONG_MS}
        jobs |= {"max_attempts": MOST_ATTEMPTS, "suspicions": SUSPICIONS}
        self.folder = tempfile.TemporaryDirectory()
        self.settings = Settings.model_validate({"jobs": jobs, "state_dir": Path(self.folder.name)})
        self.redis: Any = self.do(connect(self.settings))
        self.queue = JobQueue(self.redis, self.settings)
        self.lines = {number: Line() for number in range(1, LINES + 1)}
        self.status: Literal["in_progress", "cancelling", "finalizing"] = "in_progress"
        self.frozen = False
        self.paused = False
        self.segments = 0
        self.calls = 0
        self.epochs = dict.fromkeys(WORKERS, 0)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def key(self, name: str) -> str:
        return f"{self.settings.jobs.namespace}:batch:{{{self.batch_id}}}:{name}"

    @initialize()
    def start(self) -> None:
        self.batch_id = f"batch_{secrets.token_hex(8)}"
        window: dict[str, Any] = {"completion_window": "24h", "window_ms": 86_400_000}
        details: dict[str, Any] = {"input_file_id": "file-00000000", "endpoint": CHAT, "metadata": None}
        self.do(self.queue.create(self.batch_id, **details, **window))
        assert self.do(self.queue.begin_enqueue(self.batch_id, "v"))
        self.do(self.queue.enqueue(self.batch_id, "v", 0, [RequestRange(i, 10 * i, 9) for i in self.lines]))
        self.do(self.queue.start(self.batch_id, "v", LINES, MODEL))

    # What the model does.

    @property
    def open(self) -> bool:
        return self.status == "in_progress" and not self.frozen

    def _is_held(self, claim: ClaimedRequest) -> bool:
        line = self.lines[claim.line]
        return line.state is RequestState.LEASED and line.fence == claim.fence

    def _settle(self, number: int, result: str) -> None:
        line = self.lines[number]
        assert line.result is None, "counted twice"
        line.result = result
        line.state = RequestState.COMPLETED if result.startswith("output") else RequestState.FAILED
        line.journal = ()
        if self.open and all(one.result for one in self.lines.values()):
            self.status, self.frozen = "finalizing", True

    def _fail(self, number: int, kind: FaultKind) -> None:
        line = self.lines[number]
        if line.alone and not line.begun:
            line.state, line.due = RequestState.DELAYED, True
            return
        line.failures.append(kind)
        suspicions = sum(one.is_suspicious for one in line.failures)
        poison = line.alone and kind.is_suspicious
        if not kind.can_pass or poison or len(line.failures) >= MOST_ATTEMPTS:
            self._settle(number, "error")
            return
        line.state, line.due, line.alone = RequestState.DELAYED, False, suspicions >= SUSPICIONS

    # What claimers do.

    @rule(target=claims, worker=st.sampled_from(WORKERS), count=st.integers(1, 4), repeats=st.integers(1, 2))
    def claim(self, worker: str, count: int, repeats: int) -> Any:
        return multiple(*self._claim(worker, count, repeats))

    def _claim(self, worker: str, count: int, repeats: int = 1) -> list[ClaimedRequest]:
        self.calls += 1
        token = f"t{self.calls}"
        epoch = f"{worker}{self.epochs.get(worker, 0)}"
        first: list[ClaimedRequest] = self.do(self.queue.claim(self.batch_id, count, LONG_MS, epoch, token))
        for _ in range(repeats - 1):
            assert self.do(self.queue.claim(self.batch_id, count, LONG_MS, epoch, token)) == first
        claimable = [number for number, line in self.lines.items() if line.claimable]
        if not self.open or self.paused or not claimable:
            assert first == []
        else:
            assert 1 <= len(first) <= count
        assert len({one.line for one in first}) == len(first)
        for one in first:
            line = self.lines[one.line]
            assert line.claimable
            assert one.fence != line.fence
            assert (one.attempt, one.alone) == (len(line.failures) + 1, line.alone)
            assert one.journal == (Journal(REVISION, line.journal) if line.journal else None)
            assert not one.alone or len(first) == 1
            line.state, line.fence, line.lapsed, line.begun = RequestState.LEASED, one.fence, False, not one.alone
        return first

    @rule(claim=claims)
    def begin(self, claim: ClaimedRequest) -> None:
        assert self.do(self.queue.begin(claim)) == self._is_held(claim)
        if self._is_held(claim):
            self.lines[claim.line].begun = True

    @rule(claim=claims)
    def renew(self, claim: ClaimedRequest) -> None:
        answer = self.do(self.queue.renew(self.batch_id, {claim.line: claim.fence}, LONG_MS))
        assert answer.cancelled == (not self.open)
        assert answer.lost == (frozenset() if self._is_held(claim) else {claim.line})
        if self._is_held(claim):
            self.lines[claim.line].lapsed = False

    @rule(
        one=claims,
        other=claims,
        token_ids=st.lists(st.integers(0, 750_000), min_size=1, max_size=150),
        anew=st.booleans(),
        off=st.sampled_from([0, 0, 0, 1]),
        repeats=st.integers(1, 2),
    )
    def journal(
        self, one: ClaimedRequest, other: ClaimedRequest, token_ids: list[int], anew: bool, off: int, repeats: int
    ) -> None:
        """Written by the newest claims, from where the journal ends or from the beginning; elsewhere not at all."""
        entries, expected = [], {}
        for claim in [one] if one == other else [one, other]:
            line = self.lines[claim.line]
            start = 0 if anew else len(line.journal) + off
            entries.append(JournalEntry(claim.line, claim.fence, start, token_ids))
            if line.result is None and line.fence == claim.fence and not self.frozen:
                if start == 0 or start == len(line.journal):
                    line.journal = (*line.journal[:start], *token_ids)
                expected[claim.line] = len(line.journal)
        for _ in range(repeats):
            assert self.do(self.queue.journal(self.batch_id, REVISION, entries)) == expected

    @rule(claim=claims, repeats=st.integers(1, 2))
    def release(self, claim: ClaimedRequest, repeats: int) -> None:
        held = self._is_held(claim) and not self.frozen
        for number in range(repeats):
            assert self.do(self.queue.release(self.batch_id, {claim.line: claim.fence})) == int(held and number == 0)
        if held:
            line = self.lines[claim.line]
            line.state, line.due = (RequestState.DELAYED if line.alone else RequestState.READY), True

    @rule(claim=claims, kind=st.sampled_from(FAULTS), repeats=st.integers(1, 2))
    def retry(self, claim: ClaimedRequest, kind: FaultKind, repeats: int) -> None:
        held = self._is_held(claim) and not self.frozen
        for number in range(repeats):
            assert self.do(self.queue.retry(claim, kind, "a reason")) == (held and number == 0)
        if held:
            self._fail(claim.line, kind)

    @rule(target=commits, claim=claims, kind=st.sampled_from(["output", "error"]))
    def commit(self, claim: ClaimedRequest, kind: Literal["output", "error"]) -> Any:
        self.segments += 1
        ref = ResultRef(claim.line, claim.fence, kind, f"s-{self.segments}", 0, 1, 7, 3)
        self._commit(ref)
        return ref

    @rule(ref=commits)
    def commit_again(self, ref: ResultRef) -> None:
        self._commit(ref)

    def _commit(self, ref: ResultRef) -> None:
        packed = f"{ref.kind}|{ref.segment}"
        line = self.lines[ref.line]
        new = line.result is None and line.fence == ref.fence and not self.frozen
        accepted = self.do(self.queue.commit(self.batch_id, [ref]))
        assert accepted == ({ref.line} if new or line.result == packed else set())
        if new:
            self._settle(ref.line, packed)

    # What time, the keeper and clients do.

    @rule(numbers=st.sets(st.integers(1, LINES), min_size=1))
    def let_leases_run_out(self, numbers: set[int]) -> None:
        for number in numbers:
            if self.lines[number].state is RequestState.LEASED:
                self.do(self.redis.zadd(self.key("leases"), {number: 1}))
                self.lines[number].lapsed = True

    @rule(repeats=st.integers(1, 2))
    def reap(self, repeats: int) -> None:
        lapsed = [number for number, line in self.lines.items() if line.state is RequestState.LEASED and line.lapsed]
        if not self.open:
            lapsed = []
        for number in range(repeats):
            assert self.do(self.queue.reap(self.batch_id)) == (len(lapsed) if number == 0 else 0)
        for number in lapsed:
            self._fail(number, FaultKind.LEASE_EXPIRED)

    @rule(numbers=st.sets(st.integers(1, LINES), min_size=1))
    def let_delays_end(self, numbers: set[int]) -> None:
        for number in numbers:
            if self.lines[number].state is RequestState.DELAYED:
                self.do(self.redis.zadd(self.key("delayed"), {number: 1}))
                self.lines[number].due = True

    @rule(worker=st.sampled_from(WORKERS))
    def restart(self, worker: str) -> None:
        """A claimer starts anew, and knows nothing of its claims; they may still be committed by what is left of it."""
        self.epochs[worker] += 1

    @rule(back=st.integers(1, 20))
    def rewind_fences(self, back: int) -> None:
        """Another server takes over that had not heard of the newest fences; claimers notice, and start anew."""
        counted = int(self.do(self.redis.hget(self.key("")[:-1], "fence_counter")) or 0)
        self.do(self.redis.hset(self.key("")[:-1], "fence_counter", max(0, counted - back)))
        for worker in WORKERS:
            self.epochs[worker] += 1

    @precondition(lambda self: self.status == "in_progress")
    @rule(pause=st.booleans(), repeats=st.integers(1, 2))
    def pause_or_resume(self, pause: bool, repeats: int) -> None:
        for _ in range(repeats):
            batch = self.do((self.queue.pause if pause else self.queue.resume)(self.batch_id))
            assert (batch.paused_at is not None) == pause
        self.paused = pause

    @precondition(lambda self: self.status == "in_progress")
    @rule(priority=st.integers(-100, 100))
    def prioritise(self, priority: int) -> None:
        assert self.do(self.queue.prioritise(self.batch_id, priority)).priority == priority

    @precondition(lambda self: self.calls >= 5)
    @rule(often=st.integers(0, 9))
    def cancel(self, often: int) -> None:
        if often or not self.open:  # In few histories only, and late.
            return
        batch = self.do(self.queue.cancel(self.batch_id))
        assert batch.status == "cancelling"
        self.status = "cancelling"

    @precondition(lambda self: self.status == "cancelling")
    @rule()
    def freeze(self) -> None:
        running = any(line.state is RequestState.LEASED for line in self.lines.values())
        expected = self.frozen or not running
        assert self.do(self.queue.freeze_cancelled(self.batch_id)) == expected
        self.frozen = expected

    @precondition(lambda self: self.calls >= 5)
    @rule(often=st.integers(0, 9))
    def expire(self, often: int) -> None:
        if often:
            return
        self.do(self.redis.hset(self.key("")[:-1], "expires_at_ms", "1"))
        assert self.do(self.queue.expire(self.batch_id)) == self.open
        if self.open:
            self.status, self.frozen = "finalizing", True

    # What must hold.

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        if not hasattr(self, "batch_id"):
            return
        Histories.operations += 1
        found, batch, failures, entries = self.do(self._look())
        assert found == {number: line.state for number, line in self.lines.items()}
        results = [line.result or "" for line in self.lines.values()]
        counts = batch.request_counts
        assert counts.completed == sum(one.startswith("output") for one in results)
        assert counts.failed == sum(one.startswith("error") for one in results)
        assert batch.status == self.status
        assert batch.usage.input_tokens == 7 * sum("|" in one for one in results)
        assert [[one.kind for one in of_line] for of_line in failures] == [one.failures for one in self.lines.values()]
        queued = [int(entry.split(":")[0]) for entry in entries]
        waiting = [number for number in queued if self.lines[number].result is None]
        ready = [number for number, line in self.lines.items() if line.state is RequestState.READY]
        assert sorted(waiting) == ready, "each waiting line stands in the queue once"

    async def _look(self) -> tuple[dict[int, RequestState], Batch, list[list[FailedAttempt]], list[str]]:
        """Nothing changes meanwhile, so all may be asked for at once."""
        found, batch, failures = await asyncio.gather(
            self.queue.states(self.batch_id, list(self.lines)),
            self.queue.get(self.batch_id),
            asyncio.gather(*(self.queue.failures(self.batch_id, number) for number in self.lines)),
        )
        assert batch is not None
        return found, batch, failures, await self.redis.lrange(self.key("queue"), 0, -1)

    def teardown(self) -> None:
        try:
            if hasattr(self, "batch_id"):
                self._run_to_the_end()
        finally:
            self.do(self._clean())
            self.runner.close()
            self.folder.cleanup()

    def _run_to_the_end(self) -> None:
        """Whatever has happened, what is left can be done, and every line has one result."""
        if self.open and self.paused:
            self.pause_or_resume(False, 1)
        for _ in range(2 * LINES + 2):
            if not self.open:
                break
            self.let_leases_run_out(set(self.lines))
            self.reap(1)
            self.let_delays_end(set(self.lines))
            for claim in self._claim("heir", LINES):
                self.begin(claim)
                self.commit(claim, "output")
        assert not self.open, "the batch has come to its end"
        stored = self.do(self.queue.results(self.batch_id))
        assert stored.keys() == {number for number, line in self.lines.items() if line.result}
        for number, result in stored.items():
            packed = "error" if result.segment is None else f"{result.kind}|{result.segment}"
            assert packed == self.lines[number].result

    async def _clean(self) -> None:
        async for key in self.redis.scan_iter(match=f"{self.settings.jobs.namespace}:*", count=1_000):
            await self.redis.delete(key)
        await self.redis.aclose()


def run_histories(url: str, count: int, number: int) -> None:
    """Runs histories on a server, the same ones for the same number.

    Raises:
        AssertionError: The queue is not as its model.
    """

    class Machine(Histories):
        pass

    Machine.url = url
    seed(number)(Machine)
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    how = settings(
        max_examples=count, stateful_step_count=STEPS, deadline=None, database=None, suppress_health_check=checks
    )
    run_state_machine_as_test(Machine, settings=how)


def try_queue(inputs: int, number: int) -> Findings:
    """Runs histories of so many operations together, on an embedded server."""
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        url = embedded.ensure_running(folder)
        try:
            asyncio.run(_answer_at_once(url, folder))
            while findings.inputs < inputs and not findings.faults:
                before = Histories.operations
                try:
                    run_histories(url, HISTORIES_AT_ONCE, number + findings.inputs)
                except Exception as error:  # noqa: BLE001 - whatever it is, the queue has not done what it should
                    notes = "\n".join(getattr(error, "__notes__", ()))
                    findings.blame(Fault.of("not as the model", notes, f"{type(error).__name__}: {error}"))
                findings.inputs += Histories.operations - before
        finally:
            embedded.stop(folder)
    findings.outcomes["as the model"] = findings.inputs
    return findings


async def _answer_at_once(url: str, folder: Path) -> None:
    """What waits for the disk then waits for no full second."""
    redis = await connect(Settings.model_validate({"jobs": {"redis_url": url}, "state_dir": folder}))
    await redis.config_set("appendfsync", "always")
    await redis.aclose()
