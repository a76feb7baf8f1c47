"""What clients record of a load: streams, batches, files of records, and the percentiles of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from loadtests.chat_record import ChatRecord
from loadtests.front.batch_job import BatchJob
from loadtests.front.calls import CallError, Calls
from loadtests.front.percentile_table import describe, render
from loadtests.front.record_file import BatchRecord, RecordFileError, RecordWriter, read_records
from loadtests.front.streamed_chat import BrokenStreamError, StreamReading, make_chat
from loadtests.front.wording import Wording


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n"


def content(text: str | None, finish_reason: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}])


ROLE = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
END = event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}])
USAGE = event(choices=[], usage={"prompt_tokens": 12, "completion_tokens": 2})
DONE = b"data: [DONE]\n"


def read(*lines: bytes) -> StreamReading:
    reading, clock = StreamReading(), itertools.count(1.0)
    reading.read(lines, lambda: next(clock))
    return reading


def test_content_is_timed_and_the_role_is_none() -> None:
    reading = read(ROLE, b"\n", content("a"), b": comment\n", content("b"), END, USAGE, DONE)
    assert reading.content_s == [2.0, 3.0]
    assert (reading.prompt_tokens, reading.output_tokens, reading.finish_reason) == (12, 2, "length")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((ROLE, content("a")), "ended before the answer did"),
        ((ROLE, content("a"), DONE), "ended before the answer did"),
        ((ROLE, event(error={"message": "the engine died"})), "the engine died"),
        ((b"data: {\n",), "is no JSON"),
    ],
)
def test_broken_streams_are_errors(lines: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(BrokenStreamError, match=message):
        read(*lines)


def record(intended_s: float, sent_s: float, first_s: float, error: str | None = None) -> ChatRecord:
    return ChatRecord(intended_s, sent_s, (first_s, first_s + 0.05), first_s + 0.1, 20, 2, error)


def test_latency_counts_from_the_intended_time() -> None:
    # The client was a second late: the server's part was 0.2 s, a user would have waited 1.2 s.
    late = record(10.0, 11.0, 11.2)
    assert late.ttft_ms == pytest.approx(1_200)
    writer = RecordWriter(None, 0.0)
    writer.add_chat(late)
    summary = describe(writer.kept)
    assert summary["ttft_ms"]["p50"] == pytest.approx(1_200)
    assert summary["end_to_end_ms"]["p50"] == pytest.approx(1_300)
    assert summary["send_lag_ms"]["p50"] == pytest.approx(1_000)


def test_percentiles_are_exact_and_without_failed_requests() -> None:
    writer = RecordWriter(None, 0.0)
    for index in range(101):
        writer.add_chat(record(0.0, 0.0, 0.1234 + 0.0001 * index))
    writer.add_chat(record(0.0, 0.0, 9.0, "HTTP 503"))
    summary = describe(writer.kept)
    # Locust's own would be 130 ms.
    assert summary["ttft_ms"] == pytest.approx({"p50": 128.4, "p90": 132.4, "p99": 133.3})
    assert (summary["online_requests"], summary["online_errors"], summary["first_error"]) == (101, 1, "HTTP 503")
    assert "failed 1" in render(summary)


def test_a_file_of_records_has_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "new" / "records.jsonl"
    writer = RecordWriter(path, 5.0)
    later, earlier = record(2.0, 2.0, 2.5), record(1.0, 1.0, 1.5, "HTTP 503")
    batch = BatchRecord("batch_1", 0.0, 0.5, 9.0, "completed", 10, 9, 1, 4)
    writer.add_chat(later)
    writer.add_batch(batch)
    writer.add_chat(earlier)
    found = read_records(path)  # before it is closed: the process may have been killed
    writer.close()
    assert (found.start_s, found.chats, found.batches) == (5.0, [earlier, later], [batch])
    path.write_text('{"kind": "start", "start_s": 1}\n{"kind": "cat"}\n', encoding="utf-8")
    with pytest.raises(RecordFileError, match="line 2"):
        read_records(path)


class FakeCalls(Calls):
    """A server that answers polls from a list."""

    def __init__(self, polls: list[Any], results: bytes = b"{}\n{}\n") -> None:
        super().__init__("http://127.0.0.1:1")
        self.polls, self.results, self.posted = polls, results, [""]

    def upload(self, path: Path, timeout_s: float = 1.0) -> str:
        return "file-1"

    def post(self, path: str, content: Any, timeout_s: float = 1.0) -> Any:
        self.posted.append(path)
        return {"id": "b1", "status": "validating", "request_counts": {"total": 0, "completed": 0, "failed": 0}}

    def get_json(self, path: str, timeout_s: float = 1.0) -> Any:
        answer = self.polls.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def get(self, path: str, timeout_s: float = 1.0) -> bytes:
        return self.results


def batch(status: str, completed: int) -> dict[str, Any]:
    counts = {"total": 2, "completed": completed, "failed": 0}
    return {"id": "b1", "status": status, "request_counts": counts, "output_file_id": "o1"}


def run_job(calls: FakeCalls) -> tuple[BatchJob, list[tuple[str, float, Exception | None]]]:
    heard: list[tuple[str, float, Exception | None]] = []
    clock = itertools.count(10.0)
    job = BatchJob(calls, 3.0, lambda *call: heard.append(call), lambda: next(clock))
    job.submit(Path("any.jsonl"))
    return job, heard


def test_a_batch_is_polled_until_it_has_ended_and_its_lines_are_counted() -> None:
    job, heard = run_job(FakeCalls([batch("in_progress", 1), batch("completed", 2)]))
    while job.is_open:
        job.poll()
    found = job.to_record()
    assert (found.status, found.completed, found.total, found.polls, found.error) == ("completed", 2, 2, 2, None)
    assert [name for name, _, _ in heard] == ["upload", "create", "poll", "poll", "results", "turnaround"]
    turnaround_ms = heard[-1][1]
    assert turnaround_ms == pytest.approx((found.ended_s - found.intended_s) * 1e3)
    assert found.ended_s == job.to_record().ended_s  # not the time of asking


def test_a_missing_result_line_is_an_error() -> None:
    job, _ = run_job(FakeCalls([batch("completed", 2)], results=b"{}\n"))
    job.poll()
    assert job.to_record().error == "1 result lines for 2 requests"


def test_a_failed_poll_is_heard_of_and_ends_it() -> None:
    job, heard = run_job(FakeCalls([CallError("HTTP 500")]))
    job.poll()
    assert isinstance(heard[-1][2], CallError)
    assert not job.is_open
    assert job.to_record().error == "poll: HTTP 500"


def test_a_batch_that_is_open_at_the_end_is_cancelled() -> None:
    calls = FakeCalls([batch("in_progress", 1)])
    job, _ = run_job(calls)
    job.poll()
    job.give_up()
    assert calls.posted[-1] == "/v1/batches/b1/cancel"
    assert (job.is_open, job.to_record().status) == (False, "given up")


def test_prompts_are_as_long_as_asked_and_share_what_their_ids_share() -> None:
    wording = Wording(1, length_scale=0.125)
    one, two, three = (wording.write(100, ids) for ids in ((7, 8), (7, 9), ()))
    assert [len(text.split()) for text in (one, two, three)] == [100, 100, 100]
    assert one.split()[:64] == two.split()[:64]
    assert one.split()[64:] != two.split()[64:]
    assert three != one
    assert Wording(2).write(100) != Wording(1).write(100) == Wording(1).write(100)


def test_only_exact_chats_ask_for_what_others_than_vllm_refuse() -> None:
    assert make_chat("m", "hello", 5)["ignore_eos"] is True
    assert "ignore_eos" not in make_chat("m", "hello", 5, exact=False)


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Calls(address)
