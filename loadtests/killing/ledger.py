"""What was asked for, and whether there is exactly one right answer to each of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from conserve.jobs.batch import Batch, BatchEndpoint, BatchStatus
from loadtests.killing.roles import MODEL
from loadtests.killing.testing import OUTPUT_TOKENS, PROMPT_TOKENS, make_answer

ENDPOINT: Final = BatchEndpoint.CHAT_COMPLETIONS


def make_input(name: str, requests: int) -> bytes:
    """An input file; its requests ask for their own custom ids, which begin with `name`."""
    lines = []
    for number in range(requests):
        custom_id = f"{name}-{number}"
        body = {"model": MODEL, "messages": [{"role": "user", "content": custom_id}]}
        lines.append(json.dumps({"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}))
    return "\n".join(lines).encode() + b"\n"


@dataclass
class Verdict:
    """What has become of the requests of some batches.

    Attributes:
        requests: How many were accepted.
        lost: Custom ids that are in neither file.
        twice: Custom ids that are there more than once.
        wrong: Custom ids with another answer than theirs, or with an error; and what else does not fit.
        unfinished: Batches that did not complete.
    """

    requests: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether everything was answered once and rightly."""
        return not (self.lost or self.twice or self.wrong or self.unfinished)

    def check(self, batch: Batch, name: str, requests: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Takes a batch in.

        Args:
            batch: As it is in the end.
            name: What its input was made from.
            requests: Likewise, how many.
            lines: Of its output and error files.
        """
        self.requests += requests
        if batch.status is not BatchStatus.COMPLETED:
            self.unfinished.append(f"{batch.id}: {batch.status}")
            return
        asked = [f"{name}-{number}" for number in range(requests)]
        found = Counter(str(line["custom_id"]) for line in lines)
        self.lost += [custom_id for custom_id in asked if not found[custom_id]]
        self.twice += [custom_id for custom_id, count in found.items() if count > 1]
        self.wrong += [f"{custom_id}: nobody asked for it" for custom_id in found.keys() - set(asked)]
        for line in lines:
            custom_id = str(line["custom_id"])
            if (answer := _find_answer(line)) != make_answer(custom_id):
                self.wrong.append(f"{custom_id}: {answer or line.get('error')}")
        counts = batch.request_counts
        if (counts.total, counts.completed, counts.failed) != (requests, requests, 0):
            self.wrong.append(f"{batch.id}: {counts}")
        usage = batch.usage
        if (usage.input_tokens, usage.output_tokens) != (PROMPT_TOKENS * requests, OUTPUT_TOKENS * requests):
            self.wrong.append(f"{batch.id}: {usage}")


def _find_answer(line: Mapping[str, Any]) -> str | None:
    response = line.get("response")
    if not response or response["status_code"] != 200:
        return None
    return str(response["body"]["choices"][0]["message"]["content"])
