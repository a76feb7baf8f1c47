"""One run: online requests when they are due, whatever the answers take, beside an offline backlog that never ends.

Times are those of the running event loop, so that a loop with a clock of its own can drive a run in no time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Final, Protocol

from conserve.engine.iteration_log import Iteration
from conserve.engine.options import Objective
from conserve.engine.page import Counters, Knobs
from loadtests.coserving.results import OfflineRecord, OnlineRecord, OutputEvent, RunResult
from loadtests.coserving.workloads import BenchRequest

RELEASE_LIMIT_S: Final = 30.0
"""How long an engine may take to let go of cancelled requests."""
_RETRY_S: Final = 0.2


class RunError(RuntimeError):
    """A run cannot be made or used; the message says why."""


class CoServingEngine(Protocol):
    """What is measured; `conserve.engine.direct.DirectEngine` is one."""

    def generate(self, prompt_token_ids: Sequence[int], max_tokens: int, *, online: bool) -> AsyncGenerator[int, None]:
        """Runs one request and yields the number of new tokens of each output; closing it cancels the request."""

    def set_knobs(self, knobs: Knobs) -> None:
        """Changes settings, while nothing runs."""

    def counters(self) -> Counters:
        """What the scheduler has done since it started."""

    def iterations(self, since_s: float) -> list[Iteration]:
        """Those that ended after `since_s`, by the clock of the event loop; none if the engine keeps no log."""

    async def reset_prefix_cache(self) -> None:
        """Forgets cached prefixes; raises RuntimeError while requests run."""

    def peak_memory_bytes(self) -> int:
        """Of the engine's processes."""

    async def close(self) -> None:
        """Stops it."""


@dataclass(frozen=True)
class RunPlan:
    """What to do in one run; see `RunResult` for fields of the same name.

    Attributes:
        online: Requests; `due_s` counts from `online_start_s`.
        online_start_s: When the online arrivals begin. Those before `window_start_s` are not measured.
        offline: Endless offline requests; None for a run without.
        offline_in_flight: Offline requests in the engine at any time.
        loaded_drain_s: Offline work goes on for so long after the window, or until the last online answer.
        drain_limit_s: Online requests not answered so long after that are given up, and count as errors.
    """

    run: str
    repeat: int
    workload: str
    seed: int
    mode: str
    window_start_s: float
    window_end_s: float
    knobs: Knobs
    objective: Objective | None = None
    online: Sequence[BenchRequest] = ()
    online_start_s: float = 0.0
    offline: Iterator[BenchRequest] | None = None
    offline_in_flight: int = 0
    loaded_drain_s: float = 0.0
    drain_limit_s: float = 60.0


async def make_run(engine: CoServingEngine, plan: RunPlan) -> RunResult:
    """Makes a run on an engine that is idle, and leaves it idle.

    Failed requests are in the result.

    Raises:
        RunError: the engine does not let go of its requests.
    """
    await _prepare(engine, plan.knobs)
    return await _Run(engine, plan).make()


async def _prepare(engine: CoServingEngine, knobs: Knobs) -> None:
    engine.set_knobs(knobs)
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + RELEASE_LIMIT_S
    while True:
        try:
            async with asyncio.timeout_at(deadline_s):
                await engine.reset_prefix_cache()
            return
        except (RuntimeError, TimeoutError) as error:
            if loop.time() >= deadline_s:
                raise RunError(f"the engine is not idle {RELEASE_LIMIT_S:g} s after the last run: {error}") from error
        # Whatever an engine raises that is gone, the benchmark cannot go on.
        except Exception as error:
            raise RunError(f"the engine failed: {type(error).__name__}: {error}") from error
        await asyncio.sleep(_RETRY_S)


class _Run:
    def __init__(self, engine: CoServingEngine, plan: RunPlan) -> None:
        self._engine = engine
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._start_s = self._loop.time()
        self._online: list[OnlineRecord] = []
        self._offline: list[OfflineRecord] = []

    async def make(self) -> RunResult:
        plan = self._plan
        lanes = [asyncio.create_task(self._work_off(plan.offline)) for _ in range(plan.offline_in_flight)]
        arrivals = asyncio.create_task(self._send_online())
        try:
            await self._sleep_until(plan.window_start_s)
            before = self._engine.counters()
            await self._sleep_until(plan.window_end_s)
            after = self._engine.counters()
            # Offline work goes on beside the last online requests, which are measured, too. A long answer may be slow
            # beside it; what is left of that then is not worth the wait.
            await asyncio.wait([arrivals], timeout=plan.loaded_drain_s)
            await _cancel(lanes)
            await asyncio.wait([arrivals], timeout=plan.drain_limit_s)
        finally:
            await _cancel([*lanes, arrivals])
        return RunResult(
            run=plan.run,
            repeat=plan.repeat,
            workload=plan.workload,
            seed=plan.seed,
            mode=plan.mode,
            window_start_s=plan.window_start_s,
            window_end_s=plan.window_end_s,
            online=tuple(sorted(self._online, key=lambda record: record.intended_s)),
            offline=tuple(sorted(self._offline, key=lambda record: record.started_s)),
            counters_before=before,
            counters_after=after,
            peak_memory_bytes=self._engine.peak_memory_bytes(),
            iterations=tuple(self._list_iterations()),
            knobs={name: value for name, value in asdict(plan.knobs).items() if value and isfinite(value)},
            objective=plan.objective,
        )

    async def _send_online(self) -> None:
        async with asyncio.TaskGroup() as group:
            for request in self._plan.online:
                intended_s = self._plan.online_start_s + request.due_s
                await self._sleep_until(intended_s)
                group.create_task(self._send(request, intended_s))

    async def _send(self, request: BenchRequest, intended_s: float) -> None:
        sent_s, events = self._now_s(), list[OutputEvent]()
        error: str | None = f"not answered {self._plan.drain_limit_s:g} s after the last arrivals"
        try:
            error = await self._receive(request, events, online=True)
        finally:
            self._online.append(
                OnlineRecord(
                    intended_s=intended_s,
                    sent_s=sent_s,
                    events=tuple(events),
                    prompt_tokens=len(request.prompt),
                    output_tokens=request.output_tokens,
                    ended_s=self._now_s(),
                    error=error,
                )
            )

    async def _work_off(self, requests: Iterator[BenchRequest] | None) -> None:
        """Keeps one offline request in the engine; a failed one is the last."""
        for request in requests or ():
            started_s, events = self._now_s(), list[OutputEvent]()
            ended_s: float | None = None
            error: str | None = None
            try:
                error = await self._receive(request, events, online=False)
                ended_s = self._now_s()
            finally:
                self._offline.append(
                    OfflineRecord(
                        started_s=started_s,
                        events=tuple(events),
                        prompt_tokens=len(request.prompt),
                        output_tokens=request.output_tokens,
                        ended_s=ended_s,
                        error=error,
                    )
                )
            if error is not None:
                return

    async def _receive(self, request: BenchRequest, events: list[OutputEvent], *, online: bool) -> str | None:
        """Adds the outputs to `events` as they come; returns what went wrong."""
        outputs = self._engine.generate(request.prompt, request.output_tokens, online=online)
        try:
            async with aclosing(outputs):
                async for tokens in outputs:
                    if tokens:
                        events.append(OutputEvent(self._now_s(), tokens))
        # Whatever the engine raises is a result of the measurement.
        except Exception as failure:  # noqa: BLE001 - it is in the record
            return f"{type(failure).__name__}: {failure}"
        received = sum(event.tokens for event in events)
        return None if received == request.output_tokens else f"{received} of {request.output_tokens} tokens came"

    def _list_iterations(self) -> Iterator[Iteration]:
        for iteration in self._engine.iterations(self._start_s):
            start_s, end_s = iteration.start_s - self._start_s, iteration.end_s - self._start_s
            yield iteration._replace(start_s=start_s, end_s=end_s)

    def _now_s(self) -> float:
        return self._loop.time() - self._start_s

    async def _sleep_until(self, time_s: float) -> None:
        await asyncio.sleep(max(0.0, time_s - self._now_s()))


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Ends the tasks; what one of them failed with is raised."""
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    done, pending = await asyncio.wait(tasks, timeout=RELEASE_LIMIT_S)
    if pending:
        raise RunError(f"the engine holds {len(pending)} cancelled requests for more than {RELEASE_LIMIT_S:g} s")
    for task in done:
        if not task.cancelled():
            task.result()
