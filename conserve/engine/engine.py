"""The engine of a replica, with its two entrances: online requests, and offline ones that only use what is left."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Protocol, TypeVar

from conserve.config import DEFAULT_CLASS
from conserve.engine.arrival_board import ArrivalBoard
from conserve.engine.continuation import recording
from conserve.engine.contract import (
    AttemptTimeout,
    EngineDied,
    EngineFault,
    EngineGone,
    EngineStats,
    InvalidRequest,
    OfflineResult,
    OnChunk,
    TokenRecord,
)
from conserve.engine.cpu_clock import ChildCpuClock
from conserve.engine.offline_request import CLASS_FIELD, EMBEDDINGS, parse_request, read_answer
from conserve.engine.output_watch import watch_first
from conserve.engine.page import Counters, EnginePage
from conserve.engine.pass_control import ANNOUNCEMENT
from conserve.engine.stats import GAUGES
from conserve.engine.vllm_compat import (
    EngineDeadError,
)
from conserve.policy.harvest_rate import IterationCosts
from conserve.policy.priority import ONLINE_PRIORITY

Item = TypeVar("Item")


class OpenAIServing(Protocol):
    """The OpenAI layer above an `AsyncLLM`, as the engine objects of `ray.serve.llm` have it.

    Each method gives a stream of text chunks, or one response or one error object with `model_dump`.
    """

    def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """Answers a `ChatCompletionRequest`."""

    def completions(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """Answers a `CompletionRequest`."""

    def embeddings(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        """Answers an `EmbeddingCompletionRequest` or `EmbeddingChatRequest`."""


class OnlineVisit(Protocol):
    """Follows a request through the engine."""

    def note_first(self) -> None:
        """Its first token has come."""

    def end(self) -> None:
        """It has ended."""


class _BusyClock:
    """Counts requests in flight, and the seconds in which there was at least one."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.total = 0
        self._busy_s = 0.0
        self._since_s = 0.0

    @contextmanager
    def hold(self) -> Iterator[None]:
        if self.in_flight == 0:
            self._since_s = time.monotonic()
        self.in_flight += 1
        self.total += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._busy_s += time.monotonic() - self._since_s

    @property
    def busy_s(self) -> float:
        return self._busy_s + (time.monotonic() - self._since_s if self.in_flight else 0.0)


class CoServeEngine:
    """One engine for online and offline requests.

    Args:
        serving: the OpenAI layer of the engine.
        classes: classes of online requests by name, with the time to the first token in ms that each is promised; the
            position of a class is the priority of its requests.
        page: what the engine's scheduler reports on, if it is ours.
        board: where online requests are announced, if passes of offline work can be stopped for them.
        has_died: whether the engine has ended and only waits to be replaced.
    """

    def __init__(
        self,
        serving: OpenAIServing,
        classes: Mapping[str, float] | None = None,
        page: EnginePage | None = None,
        board: ArrivalBoard | None = None,
        has_died: Callable[[], bool] = lambda: False,
    ) -> None:
        self._serving = serving
        self._has_died = has_died
        self._died = False
        slos_ms = dict(classes) if classes is not None else {DEFAULT_CLASS: math.inf}
        self._ttft_slos_ms = list(slos_ms.values())
        self._priorities = {name: ONLINE_PRIORITY + index for index, name in enumerate(slos_ms)}
        self._page = page
        self._board = board
        self._online = _BusyClock()
        self._offline = _BusyClock()
        self._online_first_tokens = 0
        self._waiting_prompt_tokens = 0.0
        self._offline_prompt_tokens = 0
        self._offline_output_tokens = 0
        self._cpu_clock = ChildCpuClock()

    def find_priority(self, request: Any) -> int:
        """The priority of the class that an online request names.

        Raises:
            InvalidRequest: there is no such class.
        """
        name = getattr(request, CLASS_FIELD, None)
        if name is None:
            name = DEFAULT_CLASS
        if not isinstance(name, str) or name not in self._priorities:
            allowed = ", ".join(f"'{known}'" for known in self._priorities)
            raise InvalidRequest(f"There is no such request class; allowed are: {allowed}.", CLASS_FIELD)
        return self._priorities[name]

    def claim_online(self, request: Any) -> int:
        """Gives an online request the priority of the class that it names, whatever `priority` the client has sent.

        And announces it to the engine, which may be in the middle of a pass of offline work. vLLM 0.32 runs the steps
        of a beam search with priority 0: in the class that goes first.

        Returns:
            The number of the announcement, for `online` or `withdraw`; 0 for none.

        Raises:
            InvalidRequest: there is no such class.
        """
        request.priority = self.find_priority(request)
        if self._board is None or not hasattr(request, "vllm_xargs"):  # Embeddings carry no announcement.
            return 0
        now_s = time.monotonic()
        ttft_slo_ms = self._ttft_slos_ms[request.priority - ONLINE_PRIORITY]
        announcement = self._board.announce(now_s, now_s + ttft_slo_ms / 1e3)
        others = {key: value for key, value in (request.vllm_xargs or {}).items() if key != ANNOUNCEMENT}
        request.vllm_xargs = others | ({ANNOUNCEMENT: announcement} if announcement else {})
        return announcement

    def withdraw(self, announcement: int) -> None:
        """Takes the announcement of a request back that will not come."""
        if self._board is not None:
            self._board.retire(announcement)

    async def online(
        self,
        responses: AsyncGenerator[Item, None],
        announcement: int = 0,
        prompt_tokens: float = 0.0,
        visit: OnlineVisit | None = None,
    ) -> AsyncGenerator[Item, None]:
        """Passes the response stream of an online request on, and counts the request while it is in the engine.

        Args:
            responses: The stream.
            announcement: As `claim_online` has given it.
            prompt_tokens: About how many are computed before its first token.
            visit: Told when that has come, or an answer without one, and when the request has ended.
        """
        answered = False

        def note_first() -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._online_first_tokens += 1
                self._waiting_prompt_tokens -= prompt_tokens
                self.withdraw(announcement)
                if visit is not None:
                    visit.note_first()

        with self._online.hold():
            self._waiting_prompt_tokens += prompt_tokens
            # An answer that is not streamed comes as a whole, long after its first token.
            watch_first(note_first)
            try:
                # Closed with this one, so that the engine lets go of a request whose client has left.
                async with aclosing(responses):
                    async for response in responses:
                        note_first()
                        yield response
            finally:
                self.withdraw(announcement)
                if answered:
                    self._online_first_tokens -= 1
                else:
                    answered = True  # Nothing comes of it any more.
                    self._waiting_prompt_tokens -= prompt_tokens
                if visit is not None:
                    visit.end()

    async def offline(
        self,
        endpoint: str,
        body: Mapping[str, Any],
        timeout_s: float,
        record: TokenRecord | None = None,
        *,
        on_chunk: OnChunk | None = None,
    ) -> OfflineResult:
        """Runs one request of a batch, behind all online work.

        Args:
            endpoint: `/v1/chat/completions`, `/v1/completions` or, where the model can, `/v1/embeddings`.
            body: the request's body, as the HTTP API takes it. `priority` and `stream` are overwritten, a class of
                online requests is ignored.
            timeout_s: seconds until the attempt is given up.
            record: where the tokens go as they come, and what the answer goes on after; see `continuation`.
            on_chunk: hears of each chunk of the answer as it is produced; not for embeddings.

        Returns:
            The answer; a request that is itself wrong gets a 4xx answer, as over HTTP.

        Raises:
            EngineDied: the engine ended meanwhile.
            EngineGone: it had ended before.
            AttemptTimeout: the time was up.
            EngineFault: the engine failed in another way. Another attempt may succeed, as after the three above.
            asyncio.CancelledError: the caller gave up; the engine has let go of the request.
        """
        request = parse_request(endpoint, body, streamed=on_chunk is not None)
        if isinstance(request, OfflineResult):
            return request
        if self.is_gone:
            raise EngineGone("the engine has ended")
        serve = self._find_entrance(endpoint)
        with self._offline.hold(), recording(record):
            try:
                async with asyncio.timeout(timeout_s) as limit, aclosing(serve(request)) as responses:
                    answer = await read_answer(responses, on_chunk)
            except TimeoutError:
                raise AttemptTimeout(f"not answered within {timeout_s:g} s") from None
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except Exception as error:
                self._died |= isinstance(error, EngineDeadError)
                raise self._fault(f"{type(error).__name__}: {error}") from error
        # vLLM 0.32 answers a cancelled unary call with an error body in place of passing the cancellation on.
        if limit.expired():
            raise AttemptTimeout(f"not answered within {timeout_s:g} s")
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        return self._as_result(answer)

    def _find_entrance(self, endpoint: str) -> Callable[[Any], AsyncGenerator[Any, None]]:
        if endpoint == EMBEDDINGS:
            return self._serving.embeddings
        return self._serving.chat if endpoint == "/v1/chat/completions" else self._serving.completions

    def grant_floor(self, share: float) -> None:
        """Gives offline requests a share of the time beside online ones, whatever the objectives of those; 0: none.

        Without effect where the scheduler is not ours (`engine.mode: stock`).
        """
        self._turn(offline_floor=share)

    def pause_offline(self, paused: bool) -> None:
        """Lets no offline request run beside online ones, or lets them again; a floor that was granted stays.

        Without effect where the scheduler is not ours.
        """
        self._turn(offline_paused=float(paused))

    def _turn(self, **knobs: float) -> None:
        if self._page is not None:
            before = self._page.read_knobs()
            if (after := dataclasses.replace(before, **knobs)) != before:
                self._page.write_knobs(after)

    def stats(self) -> EngineStats:
        """What the engine is doing now."""
        found = self.scheduler_counters()
        counters = found or Counters()
        block_tokens, host_tokens = counters.kv_block_tokens, counters.host_block_tokens
        return EngineStats(
            online_running=self._online_first_tokens,
            online_waiting=self._online.in_flight - self._online_first_tokens,
            offline_running=self._offline.in_flight,
            kv_usage=GAUGES.kv_usage,
            online_busy_s=self._online.busy_s,
            offline_busy_s=self._offline.busy_s,
            engine_cpu_s=self._cpu_clock.read(),
            online_requests=self._online.total,
            offline_requests=self._offline.total,
            offline_prompt_tokens=self._offline_prompt_tokens,
            offline_output_tokens=self._offline_output_tokens,
            costs=IterationCosts(counters.iteration_ms, counters.prompt_token_ms, counters.decode_ms),
            kv_tokens=round(counters.kv_blocks * block_tokens),
            kv_free_tokens=round(counters.kv_free_blocks * block_tokens),
            kv_reserved_tokens=round(counters.kv_reserve_blocks * block_tokens),
            kv_offline_tokens=round(counters.kv_offline_tokens),
            checkpoint_tokens=round(counters.host_slots * host_tokens),
            checkpoint_free_tokens=round(max(0.0, counters.host_slots - counters.host_blocks) * host_tokens),
            first_tokens=round(counters.first_tokens),
            late_first_tokens=round(counters.late_first_tokens),
            next_tokens=round(counters.next_tokens),
            late_next_tokens=round(counters.late_next_tokens),
            waiting_prompt_tokens=max(0.0, self._waiting_prompt_tokens),
            **({} if found is None else _count_events(found)),
        )

    def scheduler_counters(self) -> Counters | None:
        """What the scheduler has done since the engine started; None if it is not ours (`engine.mode: stock`)."""
        return self._page.read_counters() if self._page else None

    @property
    def is_gone(self) -> bool:
        """Whether the engine has ended."""
        return self._died or self._has_died()  # vLLM does not revive an engine.

    def _fault(self, message: str) -> EngineFault:
        return EngineDied(message) if self.is_gone else EngineFault(message)

    def _as_result(self, body: dict[str, Any]) -> OfflineResult:
        if "error" in body:
            status_code = int(body["error"].get("code") or 500)
            if status_code >= 500:
                raise self._fault(str(body["error"].get("message")))
            return OfflineResult(status_code, body)
        usage = body.get("usage") or {}
        prompt_tokens, output_tokens = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
        self._offline_prompt_tokens += prompt_tokens
        self._offline_output_tokens += output_tokens
        return OfflineResult(200, body, prompt_tokens, output_tokens)


def _count_events(counters: Counters) -> dict[str, int]:
    restored = max(0.0, counters.restored_blocks - counters.restored_in_vain)
    return {
        "stops": round(counters.stops),
        "resumed_passes": round(counters.resumed_passes),
        "offline_preemptions": round(counters.offline_preemptions),
        "restored_tokens": round(restored * counters.host_block_tokens),
        "offline_computed_tokens": round(counters.offline_prefill_tokens + counters.offline_decode_tokens),
    }
