"""Exactness again, with a model as people use them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from transformers import AutoTokenizer

from conserve.models import DEFAULT_MODEL, resolve_model
from tests.integration.engine.calls import Call, run, run_together
from tests.integration.engine.engines import make_settings, start_engine

INSTRUCTION = "You write for a small paper by the sea. Answer in two sentences, without lists, as a friend would. "
SUBJECTS = ("bread", "rain", "ships", "bees", "maps", "salt", "clocks", "snow")


def make_calls(model: str) -> list[Call]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    questions = [f"{INSTRUCTION}\nQuestion: why do people care about {subject}?\nAnswer:" for subject in SUBJECTS]
    return [
        Call(tuple(tokenizer.encode(question)), max_tokens=12, online=number % 3 == 2)
        for number, question in enumerate(questions)
    ]


async def test_the_default_model_says_the_same() -> None:
    model = resolve_model(DEFAULT_MODEL)
    calls = make_calls(model)
    async with start_engine(model, make_settings("stock", enable_prefix_caching=False)) as engine:
        expected = await asyncio.gather(*(run(engine, replace(call, online=True)) for call in calls))
    assert len({tuple(output) for output in expected}) > len(calls) / 2
    async with start_engine(model, make_settings("conserve", max_num_seqs=3)) as engine:
        assert await run_together(engine, calls, bursts=2) == expected
        assert await run_together(engine, calls, bursts=2) == expected
        counted = engine.counters()
    assert counted.offline_preemptions > 0
    assert counted.mixed_iterations > 0
