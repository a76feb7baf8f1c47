from __future__ import annotations

from typing import Any

from conserve.jobs.prompt_prefix import PREFIX_CHARS, PromptPrefix

LONG = "x" * PREFIX_CHARS


def digest(*bodies: dict[str, Any]) -> str:
    prefix = PromptPrefix()
    for body in bodies:
        prefix.compare(body)
    return prefix.digest


def test_prompts_that_begin_alike_have_one_digest() -> None:
    assert digest({"prompt": LONG + "a"}) == digest({"prompt": LONG + "b"}, {"prompt": LONG + "c"}) != ""
    chat = {"messages": [{"role": "system", "content": LONG}, {"role": "user", "content": "a"}]}
    assert digest(chat) not in ("", digest({"prompt": LONG}))


def test_prompts_that_part_early_have_none() -> None:
    assert digest() == digest({}) == digest({"prompt": "short"}) == ""
    assert digest({"prompt": LONG}, {"prompt": "y" + LONG}, {"prompt": "y" + LONG}) == ""
    assert digest({"prompt": LONG}, {"prompt": "short"}) == ""
