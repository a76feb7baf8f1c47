"""Requests that are cut and continued get the answers they would have got, from a model as people use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from conserve.engine.continuation import keep_records
from conserve.engine.contract import OfflineResult, TokenRecord
from conserve.engine.engine import CoServeEngine
from conserve.engine.page import Counters
from conserve.engine.revision import find_revision
from conserve.models import DEFAULT_MODEL, resolve_model
from conserve.policy.resumption import find_obstacle
from tests.integration.engine.calls import subtract
from tests.integration.engine.engines import make_settings, start_engine
from tests.integration.engine.openai_layer import EXTRA, OpenAILayer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TIMEOUT_S = 600.0
in_loop_of_module = pytest.mark.asyncio(loop_scope="module")
# By the field that most clients send; vLLM 0.32 reads it itself.
pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")

Case = tuple[str, dict[str, Any]]


class Started:
    """A running engine with the OpenAI layer of vLLM."""

    def __init__(self, engine: CoServeEngine, llm: Any, counters: Any) -> None:
        self._engine = engine
        self.llm = llm
        self._counters = counters

    async def answer(self, case: Case, record: TokenRecord | None = None) -> dict[str, Any]:
        """The body of the answer, without what is different each time."""
        endpoint, body = case
        result = await self._engine.offline(endpoint, {"temperature": 0, **body}, TIMEOUT_S, record)
        assert isinstance(result, OfflineResult)
        assert result.status_code == 200, result.body
        assert result.output_tokens == result.body["usage"]["completion_tokens"]
        return {name: value for name, value in result.body.items() if name not in ("id", "created")}

    def counters(self) -> Counters:
        return self._counters()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started() -> AsyncIterator[Started]:
    model = resolve_model(DEFAULT_MODEL)
    settings = make_settings("conserve", **EXTRA)
    async with start_engine(model, settings) as engine:
        layer = await OpenAILayer.start(engine, model, settings)
        keep_records(engine._llm)
        yield Started(CoServeEngine(layer), engine._llm, engine.counters)


def ask(content: str, **body: Any) -> Case:
    return CHAT, {"messages": [{"role": "user", "content": content}], **body}


def complete(prompt: Any, **body: Any) -> Case:
    return COMPLETIONS, {"prompt": prompt, **body}


def list_byte_tokens() -> list[int]:
    """Tokens that are only parts of characters, and some letters: what is drawn from them is full of cut characters."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(DEFAULT_MODEL))
    text = "\N{WATER WAVE}\N{CRAB}漢字\N{SNOWMAN}é a"
    return sorted(set(tokenizer.encode(text, add_special_tokens=False)))


CASES: dict[str, Case] = {
    "chat": ask("Why is the sea salty? One sentence.", max_tokens=20),
    "chat to its own end": ask("Say only: yes", max_tokens=60),
    "chat in Spanish": ask("Escribe en español: ¿qué es el océano?", max_completion_tokens=20),
    "chat with a system prompt and drawn like": ask("Name two birds.", max_tokens=14, top_p=0.5, top_k=5, seed=3),
    "completion": complete("The ships of the harbour are", max_tokens=18),
    "completion of tokens": complete([1, 500, 900, 1300], max_tokens=12, ignore_eos=True, return_token_ids=True),
    "completion with at least so many": complete("Yes.", min_tokens=14, max_tokens=16, stop_token_ids=[28]),
    "completion with a bias": complete("One, two,", max_tokens=12, logit_bias={"198": 5, "28": -3}),
    "completion with a stop string": complete("1 2 3 4 5 6 7 8 9 10 11 12", max_tokens=40, stop=["7 18", "19"]),
    "completion with a stop string that is shown": complete(
        "a b c d e f g h", max_tokens=40, stop=[" l m"], include_stop_str_in_output=True
    ),
    "completion of parts of characters": complete(
        "\N{WATER WAVE}\N{CRAB}", max_tokens=24, allowed_token_ids=list_byte_tokens(), min_tokens=24
    ),
}


@in_loop_of_module
@pytest.mark.parametrize("name", CASES)
async def test_cut_at_every_token_the_answer_is_the_same(started: Started, name: str) -> None:
    endpoint, body = CASES[name]
    assert find_obstacle(endpoint, {"temperature": 0, **body}) is None
    undisturbed = await started.answer((endpoint, body))
    shown = await started.answer((endpoint, body | {"return_token_ids": True}))
    token_ids = shown["choices"][0]["token_ids"]
    assert len(token_ids) == undisturbed["usage"]["completion_tokens"] > 1
    whole = TokenRecord(piece=4)
    assert await started.answer((endpoint, body), whole) == undisturbed
    assert whole.token_ids == token_ids[: len(whole.token_ids)]

    records = [TokenRecord(token_ids=token_ids[:known], piece=4) for known in range(1, len(token_ids) + 1)]
    answers = await asyncio.gather(*(started.answer((endpoint, body), record) for record in records))
    for known, (record, answer) in enumerate(zip(records, answers, strict=True), start=1):
        assert answer == undisturbed, f"cut after {known} of {len(token_ids)} tokens"
        assert (record.reused, record.restarted) == (known, None)


@in_loop_of_module
async def test_the_cases_are_what_they_say(started: Started) -> None:
    answers = {name: await started.answer(case) for name, case in CASES.items()}
    choices = {name: answer["choices"][0] for name, answer in answers.items()}
    reasons = {name: (choice["finish_reason"], choice["stop_reason"]) for name, choice in choices.items()}
    assert reasons["chat"] == ("length", None)
    assert reasons["chat to its own end"] == ("stop", None)
    assert reasons["completion with a stop string"][0] == "stop"
    assert reasons["completion with a stop string"][1] in ("7 18", "19")
    assert reasons["completion with a stop string that is shown"] == ("stop", " l m")
    assert choices["completion with a stop string that is shown"]["text"].endswith(" l m")
    assert not choices["completion of parts of characters"]["text"].isascii()
    assert answers["completion"]["usage"]["completion_tokens"] == 18


@in_loop_of_module
async def test_known_tokens_are_not_generated_again(started: Started) -> None:
    case = complete("The lamp of the lighthouse", max_tokens=24, ignore_eos=True)
    shown = await started.answer((case[0], case[1] | {"return_token_ids": True}))
    token_ids = shown["choices"][0]["token_ids"]
    await started.llm.reset_prefix_cache()
    before = started.counters()
    record = TokenRecord(token_ids=token_ids[:20], piece=4)
    await started.answer(case, record)
    counted = subtract(started.counters(), before)
    # Of the last of the known tokens on; with the prompt they are one pass.
    assert counted.offline_decode_tokens <= 4
    assert record.token_ids == token_ids[: len(record.token_ids)]


@in_loop_of_module
async def test_an_answer_that_was_complete_needs_no_engine(started: Started) -> None:
    case = ask("Name a fish.", max_tokens=9)
    shown = await started.answer((case[0], case[1] | {"return_token_ids": True}))
    before = started.counters()
    record = TokenRecord(token_ids=shown["choices"][0]["token_ids"])
    assert (await started.answer(case, record))["choices"][0]["message"] == shown["choices"][0]["message"]
    assert started.counters().iterations == before.iterations


@in_loop_of_module
@pytest.mark.parametrize("extra", [{"temperature": 0.7, "seed": 1}, {"logprobs": True}, {"repetition_penalty": 1.3}])
async def test_what_cannot_go_on_begins_anew_in_the_engine_too(started: Started, extra: dict[str, Any]) -> None:
    case = ask("Name a fish.", max_tokens=9, **extra)
    undisturbed = await started.answer(case)
    record = TokenRecord(token_ids=[500, 501], journaled=2)
    assert await started.answer(case, record) == undisturbed
    assert (record.open, record.restarted, record.new_count) == (False, "engine", 0)


@in_loop_of_module
async def test_the_revision_is_known_and_is_that_of_the_folder(started: Started) -> None:
    revision = find_revision(started.llm.vllm_config)
    assert revision is not None
    assert len(revision) == 16
    assert find_revision(started.llm.vllm_config) == revision
