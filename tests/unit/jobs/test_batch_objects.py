from __future__ import annotations

import json

import pytest
from openai.types import Batch as OpenAIBatch
from openai.types import FileObject as OpenAIFile

from conserve.jobs.batch import Batch, BatchError, BatchErrors, BatchStatus, FileObject
from conserve.jobs.errors import ApiError
from conserve.jobs.results import format_error, format_output
from conserve.jobs.window import format_window, parse_window, round_up_window


def test_the_batch_object_is_the_one_of_openai() -> None:
    ours = Batch(
        id="batch_12345678",
        endpoint="/v1/completions",
        input_file_id="file-12345678",
        completion_window="24h",
        status=BatchStatus.FAILED,
        created_at=1,
        errors=BatchErrors(data=[BatchError(code="c", message="m", line=3)]),
    )
    theirs = OpenAIBatch.model_validate(ours.model_dump(mode="json"), strict=True)
    assert theirs.errors is not None
    assert theirs.errors.data is not None
    assert theirs.errors.data[0].line == 3
    assert theirs.model_dump(exclude_unset=True) == ours.model_dump(mode="json")


def test_the_file_object_is_the_one_of_openai() -> None:
    ours = FileObject(id="file-12345678", bytes=3, created_at=1, filename="a", purpose="batch_output")
    assert OpenAIFile.model_validate(ours.model_dump(mode="json"), strict=True).purpose == "batch_output"


def test_ended_states() -> None:
    assert {status for status in BatchStatus if status.ended} == {"failed", "completed", "expired", "cancelled"}


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86_400), ("1m", 60), ("90m", 5_400), ("30d", 2_592_000)])
def test_windows(text: str, seconds: int) -> None:
    assert parse_window(text, 30 * 86_400) == seconds


@pytest.mark.parametrize(
    "text", ["", "24", "h", "0h", "-1h", "1.5h", "24 h", "24H", "24h\n", "٣h", "9999999999d", "31d"]
)
def test_bad_windows_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"completion window|too long"):
        parse_window(text, 30 * 86_400)


def test_a_window_too_long_names_the_limit() -> None:
    with pytest.raises(ValueError, match="at most 30d"):
        parse_window("31d", 30 * 86_400)
    assert [format_window(s) for s in (60, 7_200, 61)] == ["1m", "2h", "61 s"]


@pytest.mark.parametrize(
    ("seconds", "most_s", "window"),
    [
        (0.5, 86_400, "1m"),
        (61, 86_400, "2m"),
        (179 * 60, 86_400, "179m"),
        (179 * 60 + 1, 86_400, "3h"),
        (71 * 3_600, 30 * 86_400, "71h"),
        (71 * 3_600 + 1, 30 * 86_400, "3d"),
        (3_601 * 3, 10_860, "181m"),
        (86_401, 86_400, None),
    ],
)
def test_windows_are_rounded_up(seconds: float, most_s: int, window: str | None) -> None:
    found = round_up_window(seconds, most_s)
    assert found == window
    if found is not None:
        assert parse_window(found, most_s) >= seconds


def test_result_lines() -> None:
    content = format_output("batch_1", 3, "grüße \u2028", 200, "req", {"text": "half \ud800 pair"})
    assert content.endswith(b"\n")
    assert len(content.splitlines()) == 1
    line = json.loads(content)
    assert line["id"].startswith("batch_req_")
    assert line["custom_id"] == "grüße \u2028"
    assert line["error"] is None
    assert line["response"] == {"status_code": 200, "request_id": "req", "body": {"text": "half \ud800 pair"}}
    failed = json.loads(format_error("batch_1", 3, "b", "batch_expired", "late"))
    assert failed == {
        "id": line["id"], "custom_id": "b", "response": None, "error": {"code": "batch_expired", "message": "late"}
    }  # fmt: skip
    assert json.loads(format_error("batch_1", 4, "b", "c", "m"))["id"] != line["id"]


def test_error_body() -> None:
    error = ApiError(503, "away", error_type="server_error", param="p", code="c", retry_after_s=5)
    assert error.body() == {"error": {"message": "away", "type": "server_error", "param": "p", "code": "c"}}
    assert error.headers() == {"Retry-After": "5"}
