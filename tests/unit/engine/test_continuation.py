"""A request that was interrupted anywhere ends as if it had not been."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from conserve.engine.continuation import keep_records, recording
from conserve.engine.contract import TokenRecord
from conserve.engine.vllm_compat import RequestOutputKind, SamplingParams
from conserve.engine.vllm_output_compat import FRONT_RELIED_ON, begin_text
from tests.unit.engine.scripted_llm import ScriptedLLM

PROMPT = "Tell me of the sea:"
PLAIN = "Salt, wind and gulls.<eos>"
MANY_BYTES = " \N{WATER WAVE}\N{FAMILY}é\N{ZERO WIDTH JOINER}漢字 \N{SNOWMAN}!<eos>"


def make_params(**changes: Any) -> SamplingParams:
    """As vLLM's OpenAI layer makes them."""
    values = {"temperature": 0.0, "max_tokens": 60, "output_kind": RequestOutputKind.FINAL_ONLY, "skip_clone": True}
    return SamplingParams(**(values | changes))


async def run(llm: Any, params: SamplingParams, record: TokenRecord | None = None, **options: Any) -> Any:
    prompt = {**llm.prompt, "prompt_token_ids": list(llm.prompt["prompt_token_ids"])}
    with recording(record):
        outputs = [output async for output in llm.generate(prompt, params, "r1", **options)]
    assert len(outputs) == 1
    assert outputs[0].finished
    return outputs[0]


def describe(output: Any) -> tuple[Any, ...]:
    (answer,) = output.outputs
    ending = (answer.finish_reason, answer.stop_reason, output.finished)
    return (answer.text, list(answer.token_ids), *ending, output.prompt, output.prompt_token_ids, answer.index)


def make_llm(answer: str) -> ScriptedLLM:
    llm = ScriptedLLM(PROMPT, answer)
    keep_records(llm)
    return llm


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "to the end of the sequence": (PLAIN, {}),
    "to another token that ends it": ("Salt and wind.<end>", {}),
    "characters of many bytes": (MANY_BYTES, {}),
    "cut off inside a character": (MANY_BYTES, {"max_tokens": 7}),
    "to the most tokens": (PLAIN, {"max_tokens": 9}),
    "one token": (PLAIN, {"max_tokens": 1}),
    "nothing": ("<eos>", {}),
    "a stop token of its own": (PLAIN, {"stop_token_ids": [ScriptedLLM(PROMPT, PLAIN).encode("w")[0]]}),
    "a stop token that is shown": ("Salt<end>", {"include_stop_str_in_output": True, "skip_special_tokens": False}),
    "special tokens that are shown": ("Sa<end><end><eos>lt<eos>", {"ignore_eos": True, "skip_special_tokens": False}),
    "special tokens without spaces": (
        "Sa<end><end><eos>lt<eos>",
        {"ignore_eos": True, "skip_special_tokens": False, "spaces_between_special_tokens": False},
    ),
    "the end ignored": ("Salt<eos>", {"ignore_eos": True, "max_tokens": 17}),
    "not before so many tokens": ("Salt<eos>", {"min_tokens": 12, "max_tokens": 20}),
    "at least and at most the same": ("Salt<eos>", {"min_tokens": 12, "max_tokens": 12}),
    "a stop string": (PLAIN, {"stop": ["and gu"]}),
    "a stop string that is shown": (PLAIN, {"stop": ["and gu"], "include_stop_str_in_output": True}),
    "the first of stop strings": (PLAIN, {"stop": ["gulls", "wind", "d a"]}),
    "a stop string that does not come": (PLAIN, {"stop": ["and gulp", "Salty"]}),
    "a stop string of many bytes": (MANY_BYTES, {"stop": ["漢字"]}),
    "a stop string not before so many tokens": (PLAIN + PLAIN, {"stop": ["wind"], "min_tokens": 12}),
    "biased and seeded": (PLAIN, {"logit_bias": {3: 1.0}, "allowed_token_ids": [1, 2], "seed": 5}),
}


@pytest.mark.parametrize("piece", [1, 4])
@pytest.mark.parametrize("case", CASES)
async def test_cut_anywhere_it_ends_as_undisturbed(case: str, piece: int) -> None:
    answer, changes = CASES[case]
    plain = ScriptedLLM(PROMPT, answer)
    undisturbed = describe(await run(plain, make_params(**changes)))
    token_ids = undisturbed[1]
    assert len(token_ids) == plain.generated
    for known in range(len(token_ids) + 1):
        llm = make_llm(answer)
        record = TokenRecord(token_ids=token_ids[:known], piece=piece, journaled=known)
        assert describe(await run(llm, make_params(**changes), record)) == undisturbed, f"cut after {known}"
        assert (record.reused, record.restarted) == (known, None)
        # None of the known ones is made again; of those behind a stop string at most a piece is made for nothing.
        rest = len(token_ids) - known
        assert rest <= llm.generated <= rest + (piece - 1 if "stop" in changes else 0)
        assert record.token_ids == token_ids[: len(record.token_ids)]
        assert len(record.token_ids) >= known
        assert record.new_count == len(record.token_ids) - known


async def test_tokens_are_told_of_in_pieces_and_the_end_is_not() -> None:
    llm, told = make_llm(PLAIN), []
    record = TokenRecord(piece=4)
    record.on_tokens = lambda: told.append(record.new_count)
    output = await run(llm, make_params(), record)
    assert told == [1, 5, 9, 13, 17, 21]
    assert record.token_ids == output.outputs[0].token_ids[:21]


async def test_a_request_without_a_record_passes_as_it_is() -> None:
    llm, plain, params = make_llm(PLAIN), ScriptedLLM(PROMPT, PLAIN), make_params()
    assert describe(await run(llm, params)) == describe(await run(plain, make_params()))
    assert params.output_kind is RequestOutputKind.FINAL_ONLY
    assert params.stream_interval is None


async def test_parameters_of_the_caller_are_left_alone() -> None:
    llm, params = make_llm(PLAIN), make_params(stop=["gulls"], min_tokens=2)
    record = TokenRecord(token_ids=llm.answer[:5], piece=4)
    await run(llm, params, record)
    assert (params.max_tokens, params.min_tokens, params.stop, params.detokenize) == (60, 2, ["gulls"], True)
    assert params.output_kind is RequestOutputKind.FINAL_ONLY


async def test_tokens_behind_the_end_are_not_believed() -> None:
    llm = make_llm(PLAIN)
    undisturbed = describe(await run(ScriptedLLM(PROMPT, PLAIN), make_params(max_tokens=5)))
    record = TokenRecord(token_ids=llm.answer[:6], journaled=6)
    assert describe(await run(llm, make_params(max_tokens=5), record)) == undisturbed
    assert (record.reused, record.restarted) == (0, "tokens")
    assert record.token_ids == llm.answer[:4]
    assert (record.journaled, record.new_count) == (0, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.5},
        {"presence_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"logprobs": 0},
        {"prompt_logprobs": 1},
        {"bad_words": ["no"]},
        {"extra_args": {"a": 1}},
        {"thinking_token_budget": 3},
        {"watermarking": True},
        {"output_kind": RequestOutputKind.DELTA},
    ],
)
def test_parameters_that_look_at_the_answer_cannot_go_on(changes: dict[str, Any]) -> None:
    check_begins_anew(make_llm(PLAIN), make_params(**changes))


def check_begins_anew(llm: Any, params: Any, prompt: Any = None, **options: Any) -> None:
    record = TokenRecord(token_ids=llm.answer[:5], journaled=5)
    with recording(record):
        llm.generate(prompt or llm.prompt, params, "r1", **options)
    assert (record.open, record.restarted, record.token_ids, record.new_count) == (False, "engine", [], 0)


def test_prompts_that_are_more_than_tokens_cannot_go_on() -> None:
    llm = make_llm(PLAIN)
    check_begins_anew(llm, make_params(), {**llm.prompt, "type": "multimodal"})
    check_begins_anew(llm, make_params(), lora_request="an adapter")


@pytest.mark.parametrize("part", ["watermark_config", "logits_processors"])
def test_an_engine_that_adds_something_cannot_go_on(part: str) -> None:
    llm = ScriptedLLM(PROMPT, PLAIN)
    owner = llm.vllm_config if part == "watermark_config" else llm.vllm_config.model_config
    setattr(owner, part, SimpleNamespace())
    keep_records(llm)
    check_begins_anew(llm, make_params())


async def test_records_belong_to_their_tasks() -> None:
    llm = make_llm(PLAIN)
    records = [TokenRecord(token_ids=llm.answer[:known], piece=2) if known else None for known in (0, 3, 9, 0, 1)]
    outputs = await asyncio.gather(*(run(llm, make_params(), record) for record in records))
    assert len({str(describe(output)) for output in outputs}) == 1
    assert [record.reused for record in records if record] == [3, 9, 1]
    assert sorted(len(prompt["prompt_token_ids"]) for prompt in llm.asked) == [
        len(llm.prompt["prompt_token_ids"]) + known for known in (0, 0, 1, 3, 9)
    ]


async def test_a_closed_stream_lets_go_of_the_request() -> None:
    llm = make_llm(PLAIN)
    let_go = asyncio.Event()
    plain = ScriptedLLM.generate

    async def hang(prompt: Any, params: Any, request_id: str, **_: Any) -> Any:
        try:
            async for output in plain(llm, prompt, params, request_id):
                yield output
                await asyncio.Event().wait()
        finally:
            let_go.set()

    llm.generate = hang  # type: ignore[method-assign]
    keep_records(llm)
    record = TokenRecord()
    task = asyncio.create_task(run(llm, make_params(), record))
    while not record.token_ids:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert let_go.is_set()
    assert record.token_ids == llm.answer[:1]


def test_vllm_has_what_is_relied_on() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = ScriptedLLM(PROMPT, PLAIN)
    detokenizer, _ = begin_text(llm, llm.prompt, make_params(), "r1")
    names = {"llm": {*dir(AsyncLLM), *AsyncLLM.__init__.__code__.co_names}}
    names |= {"detokenizer": set(dir(detokenizer)), "sampling_params": set(dir(make_params()))}
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.metrics.stats import RequestStateStats

    names["input_processor"] = set(dir(InputProcessor))
    names["request_state_stats"] = {*RequestStateStats.__dataclass_fields__}
    assert names.keys() == FRONT_RELIED_ON.keys()
    for kind, relied_on in FRONT_RELIED_ON.items():
        missing = [name for name in relied_on if name not in names[kind]]
        assert not missing, f"vLLM's {kind} has no {', '.join(missing)} any more"
