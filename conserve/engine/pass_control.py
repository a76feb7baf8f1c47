"""The scheduler's side of stopped passes: what is in flight, what a stop undoes, what can be continued."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from conserve.engine.arrival_board import ArrivalBoard
from conserve.engine.online_demand import tokens_wanted
from conserve.engine.options import SchedulerOptions
from conserve.engine.page import STOP_DEPTHS, STOP_RESPONSES_S, Counters
from conserve.engine.step_plan import StepPlan, StopNote, attach_plan
from conserve.engine.vllm_compat import (
    Request,
    Scheduler,
    SchedulerOutput,
    count_blocks_before,
    forget_scheduled,
    is_running,
    list_block_ids,
    list_blocks_from,
    preempt,
    rewind,
    uncache_blocks,
)
from conserve.engine.work_tally import Work
from conserve.policy.pass_stop import HOLD_S, MOST_KEPT_S, MOST_STOPS_IN_A_ROW

ANNOUNCEMENT: Final = "conserve_announcement"
"""The key, among the extra arguments of a request's sampling parameters, of the number of its announcement."""


class _Part(NamedTuple):
    """A request in a batch: tokens `start` to `start + tokens` of it, and the KV blocks that those are written to."""

    request: Request
    start: int
    tokens: int
    preemptions: int
    blocks: list[int]


@dataclass
class _Pass:
    step: int
    work: Work
    parts: dict[str, _Part]
    may_be_undone: bool


@dataclass
class StoppedPass:
    """A pass that was stopped and can be continued.

    Attributes:
        step: Number of its batch.
        layer, layers: It goes on before `layer` of so many.
        stopped_s: When it was stopped.
        parts: Its requests, by id.
        blocks: KV block ids of each at that time.
        spent_ms: What its layers have taken so far; 0 if that is not known.
    """

    step: int
    layer: int
    layers: int
    stopped_s: float
    parts: Mapping[str, _Part]
    blocks: Mapping[str, list[list[int]]]
    spent_ms: float = 0.0

    @property
    def computed_tokens(self) -> float:
        """What has been computed of it, in tokens: layers count by their share."""
        return sum(part.tokens for part in self.parts.values()) * self.layer / self.layers


class Beginning(NamedTuple):
    """Where a pass begins.

    Attributes:
        layer: Its first layer.
        spent_ms: What the layers before have taken, of the same work; 0 if that is not known, or there are none.
    """

    layer: int
    spent_ms: float


class PassControl:
    """Stops passes and has them continued.

    Args:
        scheduler: vLLM's.
        options: What the operator wants.
        can_resume: Whether a stopped pass of this model can be continued.
        counters: Where to count.
    """

    def __init__(self, scheduler: Scheduler, options: SchedulerOptions, can_resume: bool, counters: Counters) -> None:
        self.stopped: StoppedPass | None = None
        self.may_resume = True
        self.generation = 0
        self._stops_in_a_row = 0
        self._can_resume = can_resume
        self._continued: StoppedPass | None = None
        self._scheduler = scheduler
        self._options = options
        self._board = ArrivalBoard(options.arrivals) if options.arrivals else None
        self._counters = counters
        self._in_flight: deque[_Pass] = deque()
        self._steps = 0

    # Arrivals.

    def settle(self, request: Request) -> None:
        """An online request is there."""
        if self._board is None or request.sampling_params is None:
            return
        number = (request.sampling_params.extra_args or {}).get(ANNOUNCEMENT)
        if isinstance(number, int):
            self._board.settle(number)

    def is_awaited(self, now_s: float) -> bool:
        """Whether an online request is announced and will be here any moment."""
        if self._board is None or self._board.pending() is None:
            return False
        self._counters.missing_arrivals += self._board.settle_overdue(now_s - HOLD_S)
        return self._board.pending() is not None

    # A stopped pass.

    @property
    def can_resume(self) -> bool:
        """Whether a stopped pass can be continued."""
        return self._can_resume and self.may_resume

    @property
    def may_stop(self) -> bool:
        """Whether the next pass may be stopped: one that cannot be continued must come to its end at some time."""
        return self._stops_in_a_row < MOST_STOPS_IN_A_ROW

    def find_resumable(self) -> list[tuple[Request, int]]:
        """The requests of the stopped pass that can go on, with their tokens, in the order in which they have to run.

        One that has moved on, has lost its blocks or has gone stays out. Only the last one may leave a part of its
        prompt for later: vLLM gives each request as many tokens as it can use and the batch has left.
        """
        stopped = self.stopped
        if stopped is None:
            return []
        whole: list[tuple[Request, int]] = []
        partial: list[tuple[Request, int]] = []
        for request_id, part in stopped.parts.items():
            if not self._is_unchanged(part, stopped.blocks[request_id]):
                continue
            wanted = tokens_wanted(self._scheduler, part.request)
            if wanted == part.tokens:
                whole.append((part.request, part.tokens))
            elif wanted > part.tokens:
                partial.append((part.request, part.tokens))
        rows = whole + partial[:1]
        if not rows:
            self.give_up()
        return rows

    def holds(self, request: Request) -> bool:
        """Whether a request is in the stopped pass and has to stay as it is for it to be continued."""
        return self.stopped is not None and request.request_id in self.stopped.parts and request.is_prefill_chunk

    def count_kept_tokens(self, request: Request) -> int:
        """What is computed of a request in the stopped pass, in tokens: layers count by their share."""
        part = self.stopped.parts.get(request.request_id) if self.stopped is not None else None
        if self.stopped is None or part is None or request.num_computed_tokens != part.start:
            return 0
        return round(part.tokens * self.stopped.layer / self.stopped.layers)

    def drop_aged(self, now_s: float) -> None:
        """Gives a pass up that was stopped long ago."""
        if self.stopped is not None and now_s - self.stopped.stopped_s > MOST_KEPT_S:
            self.give_up()

    def give_up(self) -> None:
        """What was computed of the stopped pass is lost."""
        if self.stopped is not None:
            self._counters.wasted_tokens += self.stopped.computed_tokens
            self.stopped = None
            self._stops_in_a_row += 1

    def _is_unchanged(self, part: _Part, blocks: list[list[int]]) -> bool:
        request = part.request
        if not self._is_there(part) or request.num_computed_tokens != part.start:
            return False
        held = list_block_ids(self._scheduler, request)
        return all(now[: len(then)] == then for then, now in zip(blocks, held, strict=True))

    # Batches.

    def continue_stopped(self, batch: SchedulerOutput, resuming: list[tuple[Request, int]]) -> Beginning:
        """Takes note that a batch was scheduled. Returns where it begins.

        Args:
            batch: At least one token.
            resuming: What it was to consist of, if it is to continue the stopped pass.
        """
        self._continued = None
        stopped = self.stopped
        if stopped is None or not resuming:
            return Beginning(0, 0.0)
        if {request.request_id: tokens for request, tokens in resuming} != batch.num_scheduled_tokens:
            self.give_up()
            return Beginning(0, 0.0)
        left_tokens = sum(part.tokens for part in stopped.parts.values()) - batch.total_num_scheduled_tokens
        self._counters.wasted_tokens += left_tokens * stopped.layer / stopped.layers
        self._counters.resumed_passes += 1
        self._continued, self.stopped = stopped, None
        return Beginning(stopped.layer, 0.0 if left_tokens else stopped.spent_ms)

    def plan(
        self,
        batch: SchedulerOutput,
        work: Work,
        *,
        predicted_end_s: float,
        first_token_ms: float,
        may_stop: bool,
        until_s: float,
        may_lack_blocks: bool = False,
    ) -> None:
        """Tells the workers what to do with the batch.

        Args:
            batch: As for `continue_stopped`, which comes before.
            work: What it computes.
            predicted_end_s: When it is expected to end.
            first_token_ms: Of a request that arrives, once the engine is free.
            may_stop: Whether it may be stopped, if it has no online request in it.
            until_s: When it has to give way to online requests that decode; `inf` if there are none.
            may_lack_blocks: Whether it waits for KV blocks that come back, and is stopped if they do not.
        """
        self._steps += 1
        is_offline = not work.has_online
        plan = StepPlan(
            step=self._steps,
            generation=self.generation,
            rule=self._options.preempt if is_offline and may_stop else "never",
            interval_layers=self._options.safepoint_interval_layers,
            predicted_end_s=predicted_end_s,
            first_token_ms=first_token_ms,
            until_s=until_s if is_offline and may_stop else math.inf,
            keep=self.can_resume and is_offline,
            resumes=self._continued.step if self._continued is not None else 0,
            kept=self.stopped.step if self.stopped is not None else 0,
            stop_at_layer=self.choose_forced_stop(batch, is_offline),
        )
        attach_plan(batch, plan)
        # Only what may be undone has to be known: what may be stopped, and what is scheduled behind it.
        may_be_undone = plan.is_stoppable or may_lack_blocks or any(each.may_be_undone for each in self._in_flight)
        parts = self._list_parts(batch) if may_be_undone else {}
        self._in_flight.append(_Pass(plan.step, work, parts, may_be_undone))

    def choose_forced_stop(self, batch: SchedulerOutput, is_offline: bool) -> int:
        """The layer before which a batch is stopped in any case; -1 for none. Tests have their own."""
        return -1

    def take_in(self, note: StopNote | None, now_s: float) -> Work:
        """The oldest batch in flight is back. What a stopped one had of effects on the scheduler is undone.

        To be called before vLLM's scheduler takes the output in.

        Returns:
            What the batch was to compute.
        """
        done = self._in_flight.popleft()
        if note is None or note.is_void:
            # An iteration of the request that a pass was stopped for is no pass that was let go.
            if note is None and not done.work.has_online:
                self._stops_in_a_row = 0
            return done.work
        self.generation += 1
        # Of what is in flight behind it nothing will be computed either.
        parts = [part for each in (done, *self._in_flight) for part in each.parts.values()]
        self._undo(parts, set(note.failed_blocks), now_s)
        # Workers forget void batches, and who is sent back may be in the next one again.
        forget_scheduled(self._scheduler)
        self._keep(done, note, now_s)
        return done.work

    def add_time(self, spent_ms: float) -> None:
        """The batch that was just taken in, and is stopped, has taken so long, what it continued included."""
        if self.stopped is not None:
            self.stopped.spent_ms = spent_ms

    def _undo(self, undone: Sequence[_Part], missing_blocks: set[int], now_s: float) -> None:
        # Blocks of requests that have gone meanwhile, too: they are free, and would be found by their content.
        uncomputed = missing_blocks.union(block for part in undone for block in part.blocks)
        uncache_blocks(self._scheduler, uncomputed)
        going = {part.request.request_id: part for part in reversed(undone) if self._is_there(part)}
        for part in going.values():
            rewind(self._scheduler, part.request, part.start)
        for part in going.values():
            # vLLM takes blocks for computed as soon as they are allocated, so another request of the same batch may
            # have counted on them.
            if count_blocks_before(self._scheduler, part.request, part.start, uncomputed):
                preempt(self._scheduler, part.request, now_s, drops_output=True)
        for request in [*self._scheduler.running] if missing_blocks else []:
            # A part of a block may have come back, too.
            end = request.num_computed_tokens + self._scheduler.block_size - 1
            if count_blocks_before(self._scheduler, request, end, missing_blocks):
                preempt(self._scheduler, request, now_s, drops_output=True)

    def _keep(self, done: _Pass, note: StopNote, now_s: float) -> None:
        if note.failed_blocks:
            # Nothing of it was computed, and nobody has arrived; what is kept of another pass is still there.
            return
        parts = {
            request_id: part
            for request_id, part in done.parts.items()
            if self._is_there(part) and part.request.num_computed_tokens == part.start
        }
        tokens = sum(part.tokens for part in done.parts.values())
        kept_tokens = sum(part.tokens for part in parts.values()) if note.kept_bytes else 0
        self._counters.wasted_tokens += (tokens - kept_tokens) * note.layer / note.layers
        self._counters.stops += 1
        count_in(STOP_DEPTHS, note.layer / note.layers, self._counters)
        if note.announced_s:
            count_in(STOP_RESPONSES_S, note.stopped_s - note.announced_s, self._counters)
        self._counters.kept_bytes = max(self._counters.kept_bytes, note.kept_bytes)
        self.stopped = None
        self._stops_in_a_row += not kept_tokens
        if kept_tokens:
            blocks = {request_id: list_block_ids(self._scheduler, part.request) for request_id, part in parts.items()}
            self.stopped = StoppedPass(done.step, note.layer, note.layers, now_s, parts, blocks)

    def _is_there(self, part: _Part) -> bool:
        request = part.request
        return (
            self._scheduler.requests.get(request.request_id) is request
            and is_running(request)
            and request.num_preemptions == part.preemptions
        )

    def _list_parts(self, batch: SchedulerOutput) -> dict[str, _Part]:
        parts: dict[str, _Part] = {}
        for request_id, tokens in batch.num_scheduled_tokens.items():
            request: Any = self._scheduler.requests[request_id]
            # vLLM has added the tokens to the computed ones already.
            start = request.num_computed_tokens - tokens
            blocks = list_blocks_from(self._scheduler, request, start)
            parts[request_id] = _Part(request, start, tokens, request.num_preemptions, blocks)
        return parts


def count_in(bounds: Mapping[str, float], value: float, counters: Counters) -> None:
    """Counts a value in the field of the first bound that it does not pass."""
    name = next(name for name, bound in bounds.items() if value <= bound)
    setattr(counters, name, getattr(counters, name) + 1)
