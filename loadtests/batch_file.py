"""The files of a summarisation batch: the JSONL that goes in, and the result lines that come out.

Shapes: https://platform.openai.com/docs/api-reference/batch (request input object, request output object).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from loadtests.documents import Document

ENDPOINT: Final = "/v1/chat/completions"
SYSTEM = "You summarise texts. You keep to what the text says and write plain sentences."
# More requests than documents: the next task is set on the same documents, so that no request is asked twice.
TASKS = (
    "Summarise this text in two sentences.",
    "Say in one sentence what this text is about and for whom it was written.",
    "Write down the most important point of this text.",
    "Write a headline for this text, then one sentence.",
)


class BatchFileError(ValueError):
    """A result file is not what the Batch API promises; the message names the line."""


class _Usage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    prompt_tokens: int
    completion_tokens: int


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    content: str | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="ignore")
    message: _Message | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")
    usage: _Usage | None = None
    choices: list[_Choice] = []


class _Response(BaseModel):
    model_config = ConfigDict(extra="ignore")
    status_code: int
    body: _Body


class ResultLine(BaseModel):
    """One line of an output or error file."""

    model_config = ConfigDict(extra="ignore")
    custom_id: str
    response: _Response | None = None
    error: dict[str, Any] | None = None

    @property
    def text(self) -> str | None:
        """What the model wrote, if it wrote anything."""
        choices = self.response.body.choices if self.response else []
        return choices[0].message.content if choices and choices[0].message else None


@dataclass(frozen=True)
class TokenCount:
    """Tokens of finished requests, as their `usage` says."""

    prompt: int
    output: int


def make_lines(documents: Sequence[Document], requests: int, model: str, max_tokens: int) -> list[dict[str, Any]]:
    """The lines of a batch of `requests` summaries, greedy (temperature 0), in the order of the documents.

    Raises:
        ValueError: there are no documents, or `requests` or `max_tokens` is below 1.
    """
    if not documents:
        raise ValueError("documents: at least one is needed")
    if requests < 1 or max_tokens < 1:
        raise ValueError("requests and max_tokens must be at least 1")
    lines = []
    for index in range(requests):
        round_, which = divmod(index, len(documents))
        document = documents[which]
        question = f"{TASKS[round_ % len(TASKS)]}\n\nTitle: {document.name}\n\n{document.text}"
        lines.append(
            {
                "custom_id": f"summary-{index:05d}",
                "method": "POST",
                "url": ENDPOINT,
                "body": {
                    "model": model,
                    "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
                    "max_tokens": max_tokens,
                    "temperature": 0,
                },
            }
        )
    return lines


def write_batch_file(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Writes `lines` as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_result_lines(content: bytes) -> list[ResultLine]:
    """Reads an output or error file.

    Raises:
        BatchFileError: a line is no JSON or lacks what every result line has.
    """
    results = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            results.append(ResultLine.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "line"
            raise BatchFileError(f"result line {number}: {where}: {problem['msg']}") from error
    return results


def find_id_problems(expected: Iterable[str], results: Iterable[ResultLine]) -> list[str]:
    """What stands against "every `custom_id` exactly once", as sentences; empty when nothing does."""
    wanted, found = set(expected), Counter(result.custom_id for result in results)
    kinds = {
        "without a result": sorted(wanted - found.keys()),
        "with more than one result": sorted(name for name, times in found.items() if times > 1),
        "never asked for": sorted(found.keys() - wanted),
    }
    return [
        f"{len(names)} custom_id {kind}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for kind, names in kinds.items()
        if names
    ]


def count_tokens(results: Iterable[ResultLine]) -> TokenCount | None:
    """Tokens of all answered requests; None when the server did not say for one of them, or answered none."""
    usages = [result.response.body.usage for result in results if result.response and result.error is None]
    known = [usage for usage in usages if usage is not None]
    if not known or len(known) < len(usages):
        return None
    return TokenCount(sum(usage.prompt_tokens for usage in known), sum(usage.completion_tokens for usage in known))
