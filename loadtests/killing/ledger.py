"""Whether there is exactly one right answer to each request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conserve.jobs.batch import Batch, BatchStatus
from loadtests.killing.questions import Questions, find_text, make_id


@dataclass
class Verdict:
    """What has become of the requests of some batches.

    Attributes:
        questions: Have the right answers.
        requests: How many were accepted, in batches.
        flex: How many flex requests were answered.
        lost: Custom ids that are in neither file.
        twice: Custom ids that are there more than once.
        wrong: Custom ids with another answer than theirs, or with an error; and what else does not fit.
        unfinished: Batches that did not complete.
    """

    questions: Questions
    requests: int = 0
    flex: int = 0
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
        expected = {make_id(name, number): self.questions.expect(name, number) for number in range(requests)}
        found = Counter(str(line["custom_id"]) for line in lines)
        self.lost += [custom_id for custom_id in expected if not found[custom_id]]
        self.twice += [custom_id for custom_id, count in found.items() if count > 1]
        for line in lines:
            custom_id = str(line["custom_id"])
            if custom_id not in expected:
                self.wrong.append(f"{custom_id}: nobody asked for it")
            elif (answer := _find_answer(line)) != expected[custom_id].text:
                self.wrong.append(f"{custom_id}: {answer or line.get('error')}")
        counts = batch.request_counts
        if (counts.total, counts.completed, counts.failed) != (requests, requests, 0):
            self.wrong.append(f"{batch.id}: {counts}")
        prompt_tokens = sum(answer.prompt_tokens for answer in expected.values())
        output_tokens = sum(answer.output_tokens for answer in expected.values())
        usage = batch.usage
        if (usage.input_tokens, usage.output_tokens) != (prompt_tokens, output_tokens):
            self.wrong.append(f"{batch.id}: {usage}")

    def check_flex(self, name: str, number: int, answer: str) -> None:
        """Takes the answer to a flex request in, or what was said in place of it."""
        self.flex += 1
        if answer != self.questions.expect(name, number).text:
            self.wrong.append(f"{make_id(name, number)}, flex: {answer}")


def _find_answer(line: Mapping[str, Any]) -> str | None:
    response = line.get("response")
    if not response or response["status_code"] != 200:
        return None
    return find_text(response["body"])
