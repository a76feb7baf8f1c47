"""Ends attempts that failed: by their whole history a request is tried again after a delay, or given up.

What has failed is read first, then decided on by the policy, then done by one script that looks whether the lease is
still the same. In between nothing is lost: another call finds the lease as it was.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import NamedTuple

from conserve.config import JobsSettings
from conserve.jobs.keys import BatchKeys
from conserve.jobs.scripts import Scripts
from conserve.policy.retry import FailedAttempt, FaultKind, GivenUp, RetryRule

_REASON_LENGTH = 300
_MESSAGE_LENGTH = 4_000
_READ_IN_ONE_CALL = 500


class _OpenAttempt(NamedTuple):
    """An attempt that is to end; `began_ms` is None for one that waits to be run alone."""

    line: str
    fence: str
    began_ms: int | None
    alone: bool
    failures: list[FailedAttempt]


class AttemptEnder:
    """Applies the rule for retries to the requests of batches.

    Args:
        scripts: Of the client that is used.
        settings: Of the jobs; the rule is made from them.
    """

    def __init__(self, scripts: Scripts, settings: JobsSettings) -> None:
        self._scripts = scripts
        self._rule = rule_of(settings)
        self._random = random.Random()  # noqa: S311 - jitter, not a secret.

    async def fail(self, keys: BatchKeys, line: int, fence: str, kind: FaultKind, reason: str) -> bool:
        """Ends one attempt by its claimer; False when the lease is not the caller's any more."""
        now_ms, found = await self._read(keys, 0, [line])
        mine = [one for one in found if one.fence == fence]
        return bool(await self._end(keys, mine, now_ms, kind, reason, only_lapsed=False))

    async def fail_lapsed(self, keys: BatchKeys, most: int, reason: str) -> int:
        """Ends attempts whose lease has run out, up to `most` of them or a little more; returns how many."""
        total = 0
        while total < most:
            now_ms, found = await self._read(keys, _READ_IN_ONE_CALL, [])
            ended = await self._end(keys, found, now_ms, FaultKind.LEASE_EXPIRED, reason, only_lapsed=True)
            total += ended
            if ended < _READ_IN_ONE_CALL:
                break
        return total

    async def _read(self, keys: BatchKeys, lapsed: int, lines: Sequence[int]) -> tuple[int, list[_OpenAttempt]]:
        now_ms, *values = await self._scripts.run("attempts", keys, [lapsed, *lines])
        rows = zip(values[::4], values[1::4], values[2::4], values[3::4], strict=True)
        return int(now_ms), [_to_attempt(*row) for row in rows]

    async def _end(
        self,
        keys: BatchKeys,
        attempts: Sequence[_OpenAttempt],
        now_ms: int,
        kind: FaultKind,
        reason: str,
        *,
        only_lapsed: bool,
    ) -> int:
        # Half surrogate pairs could not be sent.
        reason = reason[:_REASON_LENGTH].encode("utf-8", "replace").decode()
        args: list[str | int] = [int(only_lapsed)]
        for attempt in attempts:
            # One that has not begun is put back by the script, whatever stands here.
            began_ms = now_ms if attempt.began_ms is None else attempt.began_ms
            newest = FailedAttempt(kind, reason, began_ms, now_ms, attempt.alone)
            failures = [*attempt.failures, newest]
            decision = self._rule.decide(failures, self._random.random())
            if isinstance(decision, GivenUp):
                delay_ms, alone, error = 0, 0, f"{decision.code}|{describe(failures, decision.because)}"
            else:
                delay_ms, alone, error = round(decision.delay_s * 1e3), int(decision.alone), ""
            args += [attempt.line, attempt.fence, delay_ms, alone, pack(failures), error]
        return len(await self._scripts.run("retry", keys, args)) if attempts else 0


def rule_of(settings: JobsSettings) -> RetryRule:
    """The rule for retries that the settings ask for."""
    return RetryRule(
        most_attempts=settings.max_attempts,
        first_delay_s=settings.retry_delay_s,
        longest_delay_s=settings.max_retry_delay_s,
        longest_s=settings.max_retry_time_s,
        suspicions=settings.suspicions,
    )


def describe(failures: Sequence[FailedAttempt], because: str) -> str:
    """What the error file says of a request that was given up: why, and what happened each time."""
    attempts = "1 attempt" if len(failures) == 1 else f"{len(failures)} attempts"
    told = [
        f"{number}{' (alone)' if one.alone else ''}: {one.kind}: {one.reason}"
        for number, one in enumerate(failures, start=1)
    ]
    return f"Given up after {attempts}: {because}. {' / '.join(told)}"[:_MESSAGE_LENGTH]


def pack(failures: Sequence[FailedAttempt]) -> str:
    """Failed attempts as they are stored: a short JSON list."""
    rows = [[one.kind, one.reason, one.began_ms, one.ended_ms, int(one.alone)] for one in failures]
    return json.dumps(rows, separators=(",", ":"))


def unpack(text: str) -> list[FailedAttempt]:
    """The opposite of `pack`; nothing for an empty text."""
    rows = json.loads(text) if text else []
    return [FailedAttempt(FaultKind(row[0]), row[1], row[2], row[3], bool(row[4])) for row in rows]


def _to_attempt(line: str, fence: str, entry: str, history: str) -> _OpenAttempt:
    plain, _, began = entry.partition("@")
    return _OpenAttempt(line, fence, int(began) if began else None, plain.endswith(":alone"), unpack(history))
