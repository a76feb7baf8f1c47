"""Which online requests are refused at once: those that would come late, or would make the others late.

Beyond its capacity an engine that takes everything answers nothing in time: each request waits behind those that came
before, and by its turn nobody waits for it any more. Refused at once, a client can go elsewhere or come back when it is
told to, and those that are in flight keep their objectives: goodput stays where it was at full load.

The gate counts what it has let in, and asks the engine for nothing but its costs. So it knows of requests that came at
the same moment, works without reports of others, and is the same in a replica and in the simulator. What it predicts is
corrected by what came of it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from conserve.policy.outlook import Outlook, predict_ttft_ms

LONG_PROMPT_SHARE: Final = 0.25
"""Who would be late in an idle engine, too, may wait this part of the objective: that is no overload."""
LEARNT_SHARE: Final = 0.25
"""Predictions below this part of what is allowed say nothing about those that decide."""
IN_TIME_SHARE: Final = 0.95
"""So many of the requests that were let in are to take no longer than was predicted of them, corrected."""
CORRECTION_STEP: Final = 0.1
LEAST_CORRECTION: Final = 0.5
MOST_CORRECTION: Final = 3.0
"""Less than 1 / `LEARNT_SHARE`: whatever was learnt, some are let in from whom it is unlearnt again."""
HOLD_MEMORY_REQUESTS: Final = 16
"""How long requests hold their places is an average over about so many."""
PROMPT_MEMORY_S: Final = 10.0
"""How much of the time goes to prompts is an average over about so long."""
MOST_PROMPTS_SHARE: Final = 0.8
TBT_SHARE: Final = 0.9
"""The mean time between tokens may be this part of the objective, so that it holds for each request."""
LEAST_PLACES: Final = 2
LEAST_PLACES_SHARE: Final = 0.125
"""So many sequences, and this part of the slots, may decode in any case: an objective between tokens that fewer would
miss is one that the machine cannot keep, and is no reason to send everybody away."""
GAP_PERIOD_S: Final = 1.0
LATE_GAPS_SHARE: Final = 1.1
"""Of the objective. Iterations are filled with prompts up to it, so gaps are about as long however few decode, and a
little longer half of the time: that is no reason to let fewer decode."""
LEAST_GAPS: Final = 20
"""What fewer tokens than this say in a period does not count."""
GAP_LEARNING: Final = 0.3
GAP_FORGETTING: Final = 0.1
"""How much a period counts in which tokens came too late, and one in which they did not."""
PAUSE_S: Final = 1.0
"""Offline work stays away from online requests for so long after one was refused."""
GRACE_TTFT_SHARE: Final = 4.0
"""Of the objective may be the wait for a first token in a burst that is let in."""
CALM_S: Final = 5.0
"""When nobody would have come late for so long, the next who would is the first of a burst."""
LONGEST_RETRY_S: Final = 60
"""OpenAI's clients do not wait longer."""


class Reason(StrEnum):
    """Why a request is refused."""

    QUEUE = "queue"  # As many wait as may wait.
    TTFT = "ttft"  # Its own first token would come late.
    TBT = "tbt"  # The next tokens of those in flight would.


class Conditions(NamedTuple):
    """What an engine says of itself.

    Attributes:
        outlook: What a request would find. How many online ones there are is the gate's own count. Of the KV memory
            is free what offline work holds, too, since that makes way.
        decode_ms: Time of each sequence more that decodes, 0 where it is not known.
        slots: Sequences that run at once.
        kv_tokens: Tokens that fit into the KV memory.
    """

    outlook: Outlook
    decode_ms: float
    slots: int
    kv_tokens: float = math.inf


class Verdict(NamedTuple):
    """What becomes of a request.

    Attributes:
        reason: Why it is refused; None if it is not.
        predicted_ms: The time to its first token.
        prompt_ms: The part of it that its own prompt takes.
        retry_after_s: When one like it could be let in, in whole seconds; 0 if it is not refused.
    """

    reason: Reason | None
    predicted_ms: float
    prompt_ms: float
    retry_after_s: int = 0


@dataclass(frozen=True)
class OverloadLimits:
    """What is refused.

    Attributes:
        ttft_share: The predicted time to the first token may be this part of the objective.
        max_waiting: Requests that may wait for their first token, of a class and those before it.
        by_objectives: Whether objectives are looked at; otherwise only `max_waiting` is.
        grace_s: So long requests have to come too late before any is refused for that: a burst is no overload.
    """

    ttft_share: float
    max_waiting: int
    by_objectives: bool = True
    grace_s: float = 0.0


@dataclass
class _Visit:
    """A request that was let in."""

    priority: int
    tokens: float
    places: int
    came_s: float
    predicted_ms: float
    first_s: float | None = None


@dataclass
class _Gaps:
    """How long those who decode have waited for their tokens, against what was predicted."""

    sum_ms: float = 0.0
    count: int = 0
    correction: float = 1.0
    since_s: float = -math.inf

    def learn(self, predicted_ms: float, tbt_slo_ms: float, now_s: float) -> float:
        """How many times as long as predicted they wait, if that is too long: prompts are cut to fill the objective."""
        if now_s - self.since_s >= GAP_PERIOD_S:
            if self.count >= LEAST_GAPS and predicted_ms > 0.0:
                mean_ms = self.sum_ms / self.count
                is_late = mean_ms > LATE_GAPS_SHARE * tbt_slo_ms
                ratio = min(max(mean_ms / predicted_ms, 1.0), MOST_CORRECTION) if is_late else 1.0
                self.correction += (GAP_LEARNING if ratio > 1.0 else GAP_FORGETTING) * (ratio - self.correction)
            self.sum_ms, self.count, self.since_s = 0.0, 0, now_s
        return self.correction


class OverloadGate:
    """At one engine: decides about each request, and is told what becomes of those that it lets in.

    Args:
        objectives_ms: Of each class in the order of priorities: time to the first token, and between two.
        limits: What is refused.
    """

    def __init__(self, objectives_ms: Sequence[tuple[float, float]], limits: OverloadLimits) -> None:
        self._objectives_ms = objectives_ms
        self._limits = limits
        self._visits: dict[Hashable, _Visit] = {}
        self._running = 0
        classes = len(objectives_ms)
        # By class: requests that have not ended; of those without a first token their number, sequences and tokens.
        self._present, self._waiting, self._places = [0] * classes, [0] * classes, [0] * classes
        self._tokens = [0.0] * classes
        self._hold_ms: float | None = None
        self._correction = 1.0
        self._gaps = _Gaps()
        self._prompts_ms, self._prompts_s = 0.0, -math.inf
        self._refused_s = -math.inf
        # Since when, and when last, a request would have come late or made others late.
        self._late_since_s, self._late_s = -math.inf, -math.inf
        self._turned_s = 0.0  # When the engine has turned to the prompt that it computes.

    @property
    def running(self) -> int:
        """Sequences of requests whose first token has come."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests without a first token."""
        return sum(self._waiting)

    def is_overloaded(self, now_s: float) -> bool:
        """Whether a request was refused lately: offline work is not to run beside online requests then."""
        return now_s - self._refused_s <= PAUSE_S

    def decide(self, priority: int, tokens: float, places: int, conditions: Conditions, now_s: float) -> Verdict:
        """Whether a request that comes now is let in; if so, `enter` has to follow.

        Args:
            priority: Its class by number.
            tokens: Of its prompt that have to be computed.
            places: Sequences that it takes.
            conditions: Of the engine.
            now_s: Now, by any clock that does not go back.
        """
        outlook, limits = conditions.outlook, self._limits
        ttft_slo_ms, _ = self._objectives_ms[priority]
        before = priority + 1  # Requests of these classes go before it.
        own_ms = predict_ttft_ms(outlook, 0.0, tokens) - outlook.wait_ms
        ahead_ms = max(
            self._predict_prompts_ms(before, outlook, now_s),
            self._predict_place_ms(before, places, conditions),
            self._predict_memory_ms(before, tokens, conditions),
        )
        let_in = Verdict(None, outlook.wait_ms + ahead_ms + own_ms, tokens * outlook.prompt_token_ms)
        if sum(self._waiting[:before]) >= limits.max_waiting:
            return self._refuse(let_in, Reason.QUEUE, ahead_ms, now_s)
        if not limits.by_objectives or not self._visits:
            return let_in
        allowed_ms = max(limits.ttft_share * ttft_slo_ms - own_ms, LONG_PROMPT_SHARE * ttft_slo_ms)
        late_ms = self._correction * (outlook.wait_ms + ahead_ms) - allowed_ms
        # Who waits for offline work alone is not helped by others being refused.
        comes_late = ahead_ms > 0.0 and late_ms > 0.0
        beyond = 0.0 if comes_late else self._count_beyond(priority, places, conditions, now_s)
        if not comes_late and beyond <= 0.0:
            return let_in
        is_burst = self._note_late(now_s) and late_ms + allowed_ms <= GRACE_TTFT_SHARE * ttft_slo_ms
        if is_burst:
            return let_in
        if comes_late:
            return self._refuse(let_in, Reason.TTFT, late_ms, now_s)
        return self._refuse(let_in, Reason.TBT, self._predict_ends_ms(beyond, self._running), now_s)

    def enter(
        self, request_id: Hashable, priority: int, tokens: float, places: int, verdict: Verdict, now_s: float
    ) -> None:
        """A request was let in by this verdict; the other arguments are those of `decide`."""
        if not self.waiting:
            self._turned_s = now_s
        visit = self._visits[request_id] = _Visit(priority, tokens, places, now_s, verdict.predicted_ms)
        self._present[priority] += 1
        self._count_waiting(visit, 1)
        self._prompts_ms, self._prompts_s = self._fade_prompts_ms(now_s) + verdict.prompt_ms, now_s

    def note_first(self, request_id: Hashable, now_s: float) -> None:
        """The first token of a request has come. Nothing happens if that was said before, or it was not let in."""
        visit = self._visits.get(request_id)
        if visit is None or visit.first_s is not None:
            return
        visit.first_s = self._turned_s = now_s
        self._count_waiting(visit, -1)
        self._running += visit.places
        ttft_slo_ms, _ = self._objectives_ms[visit.priority]
        if LEARNT_SHARE * self._limits.ttft_share * ttft_slo_ms <= visit.predicted_ms:
            # Robbins and Monro's way to a quantile: it rests where so many are below.
            is_longer = (now_s - visit.came_s) * 1e3 > self._correction * visit.predicted_ms
            step = CORRECTION_STEP * (IN_TIME_SHARE if is_longer else IN_TIME_SHARE - 1.0)
            self._correction = min(max(self._correction + step, LEAST_CORRECTION), MOST_CORRECTION)

    def note_gaps(self, gap_ms: float, now_s: float, count: int = 1) -> None:
        """So many further tokens have come, each so long after the one before. Offline work beside them counts not."""
        if self.is_overloaded(now_s):
            self._gaps.sum_ms += gap_ms * count
            self._gaps.count += count

    def leave(self, request_id: Hashable, now_s: float) -> None:
        """A request has ended, in whatever way. Nothing happens if that was said before, or it was not let in."""
        visit = self._visits.pop(request_id, None)
        if visit is None:
            return
        self._present[visit.priority] -= 1
        if visit.first_s is None:
            self._count_waiting(visit, -1)
            return
        self._running -= visit.places
        held_ms = (now_s - visit.first_s) * 1e3
        before_ms = held_ms if self._hold_ms is None else self._hold_ms
        self._hold_ms = before_ms + (held_ms - before_ms) / HOLD_MEMORY_REQUESTS

    def _note_late(self, now_s: float) -> bool:
        """Somebody would come late now; whether that began so short a time ago that it is borne."""
        if now_s - self._late_s > CALM_S:
            self._late_since_s = now_s
        self._late_s = now_s
        return now_s - self._late_since_s < self._limits.grace_s

    def _refuse(self, let_in: Verdict, reason: Reason, wait_ms: float, now_s: float) -> Verdict:
        self._refused_s = now_s
        retry_after_s = max(1, min(LONGEST_RETRY_S, math.ceil(min(wait_ms, LONGEST_RETRY_S * 1e3) / 1e3)))
        return let_in._replace(reason=reason, retry_after_s=retry_after_s)

    def _count_waiting(self, visit: _Visit, sign: int) -> None:
        self._waiting[visit.priority] += sign
        self._places[visit.priority] += sign * visit.places
        self._tokens[visit.priority] += sign * visit.tokens

    def _predict_ends_ms(self, places: float, running: int) -> float:
        """Until so many sequences have ended, of those that run; 0 where it is not known how long they do."""
        return places * self._hold_ms / running if self._hold_ms is not None and running else 0.0

    def _predict_prompts_ms(self, before: int, outlook: Outlook, now_s: float) -> float:
        tokens, count = sum(self._tokens[:before]), sum(self._waiting[:before])
        if not count:
            return 0.0
        # The first of them is half computed, by the time that has passed.
        computed_ms = min((now_s - self._turned_s) * 1e3, tokens / count * outlook.token_ms)
        return tokens * outlook.token_ms - computed_ms

    def _predict_place_ms(self, before: int, places: int, conditions: Conditions) -> float:
        # Those that there will never be slots enough for run one after the other in any case.
        wanted = self._running + sum(self._places[:before]) + min(places, conditions.slots) - conditions.slots
        return self._predict_ends_ms(wanted, min(self._running, conditions.slots)) if wanted > 0 else 0.0

    def _predict_memory_ms(self, before: int, tokens: float, conditions: Conditions) -> float:
        free_tokens = conditions.outlook.free_kv_tokens
        wanted = sum(self._tokens[:before]) + tokens - free_tokens
        if wanted <= 0.0 or not self._running:
            return 0.0
        held_by_each = max(1.0, (conditions.kv_tokens - free_tokens) / self._running)
        return self._predict_ends_ms(wanted / held_by_each, self._running)

    def _fade_prompts_ms(self, now_s: float) -> float:
        return self._prompts_ms * math.exp(-max(0.0, now_s - self._prompts_s) / PROMPT_MEMORY_S)

    def _count_beyond(self, priority: int, places: int, conditions: Conditions, now_s: float) -> float:
        """Sequences by which there are too many for the strictest objective between tokens of those in flight.

        Prompts take their part of the time: the tokens of those who decode come so much later.
        """
        outlook, decode_ms = conditions.outlook, conditions.decode_ms
        tbt_slo_ms = min(
            tbt_ms
            for number, (_, tbt_ms) in enumerate(self._objectives_ms)
            if number == priority or self._present[number]
        )
        if decode_ms <= 0.0 or math.isinf(tbt_slo_ms):
            return 0.0
        decodes_share = 1.0 - min(MOST_PROMPTS_SHARE, self._fade_prompts_ms(now_s) / (1e3 * PROMPT_MEMORY_S))
        correction = self._gaps.learn(outlook.iteration_ms / decodes_share, tbt_slo_ms, now_s)
        overhead_ms = outlook.iteration_ms - decode_ms * self._running
        most = (TBT_SHARE * tbt_slo_ms / correction * decodes_share - overhead_ms) / decode_ms
        most = max(most, LEAST_PLACES, LEAST_PLACES_SHARE * conditions.slots)
        return self._running + sum(self._places) + places - most
