"""Offline requests whose tokens are kept as they come, and that go on after tokens of an earlier attempt.

Stands between vLLM's OpenAI layer, which makes requests and answers, and `AsyncLLM.generate`: the layer asks for one
final output per request and gets it, whatever was done below. Which request has a record is known from the context of
the call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import structlog

from conserve.engine.contract import TokenRecord
from conserve.engine.output_watch import OutputWatcher, watch_outputs
from conserve.engine.vllm_compat import SamplingParams
from conserve.engine.vllm_output_compat import (
    begin_text,
    fill_output,
    has_harmless_engine,
    has_harmless_params,
    make_output,
    to_pieces,
    to_rest,
)
from conserve.policy.priority import OFFLINE_PRIORITY, ONLINE_PRIORITY
from conserve.policy.resumption import Ending, Obstacle

log = structlog.get_logger(__name__)

_RECORD: ContextVar[TokenRecord | None] = ContextVar("record", default=None)

Call = Callable[[Mapping[str, Any], Any], AsyncGenerator[Any, None]]
"""Runs a request with this prompt and these parameters."""


@contextmanager
def recording(record: TokenRecord | None) -> Iterator[None]:
    """What is asked of the engine within the block, in the same task, is recorded; one request only."""
    token = _RECORD.set(record)
    try:
        yield
    finally:
        _RECORD.reset(token)


def keep_records(llm: Any) -> RecordingGenerate:
    """Makes an `AsyncLLM` keep the records of requests that have one. Others pass as before."""
    generate = RecordingGenerate(llm)
    llm.generate = generate
    return generate


class Detokenizer(Protocol):
    """The part of vLLM's `IncrementalDetokenizer` that makes the text of one answer."""

    output_token_ids: list[int]

    def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None:
        """Takes tokens, the last of which may be a stop token; returns the stop string that ends the answer there."""

    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        """The text."""


class WholeAnswer:
    """An answer put together of tokens from more than one attempt.

    One detokenizer sees all of them, so that characters and stop strings may lie across a cut.
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self.ending: Ending | None = None

    def add(self, token_ids: Sequence[int], ending: Ending | None) -> bool:
        """Takes the next tokens, and how the answer ends behind them if it does; returns whether it has ended now."""
        is_stopped = ending is not None and ending.finish_reason == "stop"
        stop_string = self._detokenizer.update(list(token_ids), is_stopped)
        self.ending = Ending("stop", stop_string) if stop_string else ending
        return self.has_ended

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self.ending is not None

    @property
    def token_ids(self) -> list[int]:
        """All tokens; those behind a stop string are left out."""
        return self._detokenizer.output_token_ids

    @property
    def text(self) -> str:
        """The text of an answer that has ended."""
        return self._detokenizer.get_next_output_text(True, False)


class RecordingGenerate:
    """Stands for the `generate` of an `AsyncLLM`.

    Attributes:
        watcher: Hears of the outputs of online requests.
    """

    watcher: OutputWatcher | None = None

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._generate = llm.generate
        self._is_harmless = has_harmless_engine(llm)

    def __call__(self, prompt: Any, sampling_params: Any, request_id: str, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Runs a request, as `AsyncLLM.generate` does."""
        record = _RECORD.get()
        if record is None:
            outputs: AsyncGenerator[Any, None] = self._generate(prompt, sampling_params, request_id, **kwargs)
            priority = kwargs.get("priority") or ONLINE_PRIORITY
            if priority >= OFFLINE_PRIORITY:
                return outputs
            return watch_outputs(outputs, priority, None if getattr(sampling_params, "n", 1) > 1 else self.watcher)
        _RECORD.set(None)
        if not self._can_go_on(prompt, sampling_params, kwargs):
            record.begin_anew(Obstacle.ENGINE)
            record.close()
            return self._generate(prompt, sampling_params, request_id, **kwargs)  # type: ignore[no-any-return]
        call = partial(self._generate, request_id=request_id, **kwargs)
        return _Run(self._llm, call, prompt, sampling_params, request_id, record).generate()

    def _can_go_on(self, prompt: Any, params: Any, kwargs: Mapping[str, Any]) -> bool:
        return (
            self._is_harmless
            and isinstance(prompt, dict)
            and prompt.get("type") == "token"
            and kwargs.get("lora_request") is None
            and isinstance(params, SamplingParams)
            and has_harmless_params(params)
        )


class _Run:
    """One request with a record."""

    def __init__(
        self, llm: Any, call: Call, prompt: Mapping[str, Any], params: Any, request_id: str, record: TokenRecord
    ) -> None:
        self._llm = llm
        self._call = call
        self._prompt = prompt
        self._params = params
        self._id = request_id
        self._record = record

    async def generate(self) -> AsyncGenerator[Any, None]:
        """Gives the final output."""
        answer = self._take_up() if self._record.token_ids else None
        yield await (self._begin() if answer is None else self._end(answer))

    def _take_up(self) -> WholeAnswer | None:
        """The answer with what is known of it; None if that cannot be this request's."""
        known = tuple(self._record.token_ids)
        detokenizer, rule = begin_text(self._llm, self._prompt, self._params, self._id)
        try:
            ending = rule.find_ending(known)
        except ValueError as error:
            log.warning("offline request begins anew", request_id=self._id, reason=str(error), tokens=len(known))
            self._record.begin_anew(Obstacle.TOKENS)
            return None
        answer = WholeAnswer(detokenizer)
        answer.add(known, ending)
        self._record.reused = len(known)
        return answer

    async def _begin(self) -> Any:
        """Runs the whole request; the text is vLLM's own."""
        texts: list[str] = []
        token_ids: list[int] = []
        async with aclosing(self._call(self._prompt, to_pieces(self._params, self._record.piece))) as outputs:
            async for output in outputs:
                (part,) = output.outputs
                texts.append(part.text)
                token_ids += part.token_ids
                if output.finished:
                    part.text, part.token_ids = "".join(texts), token_ids
                    return output
                self._record.add(part.token_ids)
        raise RuntimeError(f"request {self._id} has no final output")

    async def _end(self, answer: WholeAnswer) -> Any:
        """Runs what is missing of an answer."""
        output = make_output(self._id, self._prompt)
        if not answer.has_ended:
            known = self._record.token_ids
            prompt = {**self._prompt, "prompt_token_ids": [*self._prompt["prompt_token_ids"], *known]}
            async with aclosing(self._call(prompt, to_rest(self._params, len(known), self._record.piece))) as outputs:
                async for output in outputs:
                    (part,) = output.outputs
                    ending = Ending(part.finish_reason, part.stop_reason) if output.finished else None
                    if answer.add(part.token_ids, ending):
                        break
                    self._record.add(part.token_ids)
        if answer.ending is None:
            raise RuntimeError(f"request {self._id} has no final output")
        return fill_output(output, self._prompt, answer.text, answer.token_ids, answer.ending)
