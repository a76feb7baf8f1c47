"""Whether a batch is promised its completion window: first by the length of its file, then by what is in it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import structlog
from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs.batch import ActiveBatch, BatchStatus
from conserve.jobs.capacity_store import CapacityStore
from conserve.jobs.clock import read_server_ms
from conserve.jobs.queue import JobQueue
from conserve.jobs.window import format_window, round_up_window
from conserve.policy.admission import Decision, Promise, decide
from conserve.policy.batch_work import InputSize, SeenUsage, estimate_work, find_tokens_left, guess_work
from conserve.policy.capacity import CapacityHistory
from conserve.policy.forecast import PROMISED_SHARE, PromisedCapacity

_log = structlog.get_logger(__name__)

GUESSED_SHARE: Final = 0.5
"""Of what a batch is taken for by the length of its file: only where not even this fits is it refused when created."""
_EARLIEST_SPARE: Final = 1.05
_EARLIEST_SPARE_S: Final = 60.0
"""The window that is named has to do a moment later, too, when the client comes back with it."""

WINDOW_TOO_SHORT: Final = "window_too_short"


@dataclass(frozen=True)
class Assessment:
    """What was found out about a batch.

    Attributes:
        tokens: Its work, prompts and answers.
        size: Its file, as far as it is known.
        verdict: As `Batch.admission`; None: nobody has looked.
        backed_by: As `Batch.deadline_backed_by`.
        earliest_window: The shortest one that would do, if its own does not; None: none that is allowed does.
        message: Why its own does not, for the client.
    """

    tokens: float
    size: InputSize
    verdict: Literal["fits", "unknown", "window_too_short"] | None = None
    backed_by: Literal["forecast", "floor"] | None = None
    earliest_window: str | None = None
    message: str = ""

    @property
    def is_too_short(self) -> bool:
        """Whether the window does not do."""
        return self.verdict == WINDOW_TOO_SHORT

    def to_fields(self) -> dict[str, str | int]:
        """As it is kept with the batch."""
        return {
            "work_tokens": math.ceil(self.tokens),
            "file_bytes": self.size.file_bytes,
            "prompt_bytes": self.size.prompt_bytes,
            "admission": self.verdict or "",
            "deadline_backed_by": self.backed_by or "",
            "earliest_completion_window": self.earliest_window or "",
        }


@dataclass(frozen=True)
class _Question:
    """A batch that wants to be promised something; what it is in the queue already counts only if it came before."""

    batch_id: str
    created_at_ms: int
    expires_at_ms: int
    model: str
    tokens: float


class AdmissionDesk:
    """Assesses batches. Errors of Redis come through.

    Args:
        redis: A client.
        queue: The batches that were promised something before.
        settings: ConServe's settings.
        models: The served ones. With more than one, it is known only after the validation which one a batch is for.
    """

    def __init__(self, redis: Redis, queue: JobQueue, settings: Settings, models: Collection[str]) -> None:
        self._redis = redis
        self._queue = queue
        self._settings = settings.jobs
        self._has_floor = settings.harvest.deadline_floor > 0
        self._store = CapacityStore(redis, settings.jobs.namespace)
        self._model = next(iter(models)) if len(models) == 1 else None

    @property
    def refuses(self) -> bool:
        """Whether a batch whose window is too short is refused."""
        return self._settings.admission == "refuse"

    async def assess_new(self, batch_id: str, endpoint: str, file_bytes: int, window_s: int) -> Assessment:
        """Looks at a batch that is about to be created.

        Args:
            batch_id: Its id.
            endpoint: What it asks.
            file_bytes: Length of its file.
            window_s: Its completion window.
        """
        size = InputSize(file_bytes=file_bytes)
        usage = await self._store.read_usage(self._model, endpoint) if self._model is not None else SeenUsage()
        tokens = guess_work(file_bytes, usage).tokens
        if self._settings.admission == "off" or self._model is None:
            return Assessment(tokens, size)
        now_ms = await read_server_ms(self._redis)
        question = _Question(batch_id, now_ms, now_ms + window_s * 1000, self._model, tokens)
        return await self._judge(question, size, GUESSED_SHARE)

    async def assess_validated(self, batch: ActiveBatch, model: str, size: InputSize) -> Assessment:
        """Looks at a batch whose file has been read, before anything of it runs."""
        usage = await self._store.read_usage(model, batch.endpoint)
        tokens = estimate_work(size, usage).tokens
        if self._settings.admission == "off":
            return Assessment(tokens, size)
        question = _Question(batch.batch_id, batch.created_at_ms, batch.expires_at_ms, model, tokens)
        return await self._judge(question, size, 1.0)

    async def record(self, batch: ActiveBatch) -> None:
        """Takes note of what a batch took that has ended."""
        done = batch.completed + batch.failed
        if batch.model is None or batch.total == 0 or done == 0 or batch.prompt_tokens == 0:
            return
        share = done / batch.total
        took = (batch.prompt_tokens, batch.completion_tokens)
        usage = SeenUsage(done, share * batch.file_bytes, share * batch.prompt_bytes, *took)
        await self._store.add_usage(batch.model, batch.endpoint, usage)

    async def _judge(self, question: _Question, size: InputSize, share: float) -> Assessment:
        history = await self._store.read_history(question.model)
        batches = await self._queue.active_summaries()
        now_s = await read_server_ms(self._redis) / 1000
        if now_s * 1000 >= question.expires_at_ms:
            return Assessment(question.tokens, size)  # Its lines are named in its error file, as expired.
        promises = _list_promises(batches, question)
        # Some milliseconds of computing that the front's other requests need not wait for.
        decision = await asyncio.to_thread(self._decide, history, promises, question, share, now_s)
        if decision is None:
            return Assessment(question.tokens, size, "unknown")
        if decision.fits:
            return Assessment(question.tokens, size, "fits", "floor" if self._has_floor else "forecast")
        earliest = self._name_window(decision.earliest_s, now_s)
        message = self._explain(question, earliest)
        _log.info("a completion window is too short", batch_id=question.batch_id, tokens=question.tokens, why=message)
        return Assessment(question.tokens, size, WINDOW_TOO_SHORT, earliest_window=earliest, message=message)

    def _decide(
        self,
        history: CapacityHistory,
        promises: Sequence[Promise],
        question: _Question,
        share: float,
        now_s: float,
    ) -> Decision | None:
        """The decision; the earliest deadline is for all of its work. None: too little is known."""
        quantile = self._settings.forecast_quantile
        try:
            capacity = PromisedCapacity(history, now_s, self._settings.max_window_s, quantile, PROMISED_SHARE)
        except ValueError:
            return None
        deadline_s = question.expires_at_ms / 1000
        decision = decide(promises, Promise(deadline_s, share * question.tokens), capacity, now_s)
        if decision.fits or share == 1.0:
            return decision
        return Decision(False, decide(promises, Promise(deadline_s, question.tokens), capacity, now_s).earliest_s)

    def _name_window(self, earliest_s: float | None, now_s: float) -> str | None:
        """The shortest window for a batch like this one that is created now."""
        if earliest_s is None:
            return None
        window_s = (earliest_s - now_s) * _EARLIEST_SPARE + _EARLIEST_SPARE_S
        return round_up_window(window_s, self._settings.max_window_s)

    def _explain(self, question: _Question, earliest: str | None) -> str:
        window = format_window(round((question.expires_at_ms - question.created_at_ms) / 1000))
        found = (
            f"The completion window of {window} is too short for this batch (about {question.tokens:,.0f} tokens), on "
            "the capacity seen lately and with what was promised to others."
        )
        if earliest is None:
            longest = format_window(self._settings.max_window_s)
            return f"{found} No window up to {longest}, the longest one, is enough for it now."
        return f"{found} The earliest one that fits now is '{earliest}'."


def _list_promises(batches: Sequence[ActiveBatch], question: _Question) -> list[Promise]:
    """What is left of what others were promised: those that run, and of those being validated the ones before it.

    Flex requests were promised nothing.
    """
    own = (question.created_at_ms, question.batch_id)
    promises = []
    for batch in batches:
        is_running = batch.status is BatchStatus.IN_PROGRESS
        is_before = batch.status is BatchStatus.VALIDATING and (batch.created_at_ms, batch.batch_id) < own
        if batch.flex is not None or batch.batch_id == question.batch_id or not (is_running or is_before):
            continue
        if batch.model in (None, question.model):
            promises.append(Promise(batch.expires_at_ms / 1000, find_batch_tokens_left(batch)))
    return promises


def find_batch_tokens_left(batch: ActiveBatch) -> float:
    """Tokens that a batch has still to take."""
    used = batch.prompt_tokens + batch.completion_tokens
    return find_tokens_left(batch.total, batch.completed + batch.failed, batch.work_tokens, used)
