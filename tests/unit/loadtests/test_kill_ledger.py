"""The ledger of the kill runs finds what it is there to find."""

from __future__ import annotations

import json
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from conserve.jobs.batch import Batch
from loadtests.kill_runs import main
from loadtests.killing.ledger import Verdict
from loadtests.killing.questions import make_input
from loadtests.killing.testing.engine import PROMPT_TOKENS, LightQuestions, make_answer

REQUESTS = 3
QUESTIONS = LightQuestions()
OUTPUT_TOKENS = sum(len(make_answer(f"a-{number}")) for number in range(REQUESTS))


def make_batch(**changes: Any) -> Batch:
    whole: dict[str, Any] = {
        "id": "batch_0123456789abcdef",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-0123456789abcdef",
        "completion_window": "24h",
        "status": "completed",
        "created_at": 1,
        "expires_at": 2,
        "request_counts": {"total": REQUESTS, "completed": REQUESTS, "failed": 0},
        "usage": {
            "input_tokens": PROMPT_TOKENS * REQUESTS,
            "output_tokens": OUTPUT_TOKENS,
            "total_tokens": PROMPT_TOKENS * REQUESTS + OUTPUT_TOKENS,
        },
    }
    return Batch.model_validate(whole | changes)


def make_line(custom_id: str, answer: str | None = None) -> dict[str, Any]:
    content = make_answer(custom_id) if answer is None else answer
    body = {"choices": [{"message": {"content": content}}]}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


LINES = [make_line(f"a-{number}") for number in range(REQUESTS)]


def check(batch: Batch, lines: list[dict[str, Any]]) -> Verdict:
    verdict = Verdict(QUESTIONS)
    verdict.check(batch, "a", REQUESTS, lines)
    return verdict


def test_the_input_asks_for_its_own_ids() -> None:
    lines = [json.loads(line) for line in make_input(QUESTIONS, "a", REQUESTS).splitlines()]
    assert [line["custom_id"] for line in lines] == [line["custom_id"] for line in LINES]
    assert all(line["body"]["messages"][0]["content"] == line["custom_id"] for line in lines)


def test_one_right_answer_each_is_clean() -> None:
    verdict = check(make_batch(), LINES)
    assert verdict.is_clean
    assert verdict.requests == REQUESTS


@pytest.mark.parametrize(
    ("lines", "lost", "twice", "wrong"),
    [
        (LINES[1:], ["a-0"], [], 0),
        ([*LINES, LINES[1]], [], ["a-1"], 0),
        ([*LINES[1:], make_line("a-0", "something else")], [], [], 1),
        ([*LINES, make_line("b-0")], [], [], 1),
        ([*LINES[1:], {"custom_id": "a-0", "response": None, "error": {"code": "poison_request"}}], [], [], 1),
    ],
)
def test_it_finds_what_is_lost_twice_or_wrong(
    lines: list[dict[str, Any]], lost: list[str], twice: list[str], wrong: int
) -> None:
    verdict = check(make_batch(), lines)
    assert (verdict.lost, verdict.twice, len(verdict.wrong)) == (lost, twice, wrong)
    assert not verdict.is_clean


@pytest.mark.parametrize(
    "changes",
    [
        {"request_counts": {"total": REQUESTS, "completed": REQUESTS + 1, "failed": 0}},
        {"usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}},
        {"status": "finalizing"},
    ],
)
def test_counts_and_status_have_to_fit(changes: dict[str, Any]) -> None:
    assert not check(make_batch(**changes), LINES).is_clean


def test_a_flex_request_has_one_right_answer() -> None:
    verdict = Verdict(QUESTIONS)
    verdict.check_flex("f", 1, make_answer("f-1"))
    assert (verdict.flex, verdict.is_clean) == (1, True)
    verdict.check_flex("f", 2, make_answer("f-1"))
    assert (verdict.flex, len(verdict.wrong)) == (2, 1)


def test_the_command_says_what_can_be_killed() -> None:
    app = typer.Typer()
    app.command()(main)
    refused = CliRunner().invoke(app, ["--only", "nobody"])
    assert refused.exit_code == 2
    said = " ".join(refused.output.replace("│", "").split())
    assert "'nobody' is not one of 'replica', 'controller', 'front', 'redis'" in said
