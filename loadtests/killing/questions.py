"""What is asked in a run of kills, and what has to be answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

from conserve.jobs.batch import BatchEndpoint

ENDPOINT: Final = BatchEndpoint.CHAT_COMPLETIONS


class Answer(NamedTuple):
    """The one right answer to a request, with its tokens."""

    text: str
    prompt_tokens: int
    output_tokens: int


class Questions(Protocol):
    """Requests whose answers are known."""

    def make_body(self, name: str, number: int) -> Mapping[str, Any]:
        """The body of a request of the batch `name`."""

    def expect(self, name: str, number: int) -> Answer:
        """The answer to it."""


def find_text(answer: Mapping[str, Any]) -> str:
    """The text of an answer to a chat."""
    return str(answer["choices"][0]["message"]["content"])


def make_input(questions: Questions, name: str, requests: int) -> bytes:
    """The input file of a batch; its custom ids begin with `name`."""
    lines = []
    for number in range(requests):
        body = questions.make_body(name, number)
        line = {"custom_id": make_id(name, number), "method": "POST", "url": ENDPOINT, "body": body}
        lines.append(json.dumps(line))
    return "\n".join(lines).encode() + b"\n"


def make_id(name: str, number: int) -> str:
    """The custom id of a request."""
    return f"{name}-{number}"
