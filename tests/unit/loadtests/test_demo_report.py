from __future__ import annotations

import io
import re
import time

import httpx
import pytest
from rich.console import Console

from loadtests.batch_file import TokenCount
from loadtests.chat_load import ChatRecord
from loadtests.demo_report import BatchPhase, ChatPhase, find_problems, make_report
from loadtests.demo_table import Sample, print_result
from loadtests.display import BatchProgress, DemoDisplay, DemoView
from loadtests.engine_status import EngineUse, ReplicaStatus, StatusReader, StatusReport, measure_use
from loadtests.report import BatchReport


def record(intended_s: float, ttft_s: float, error: str | None = None, output_tokens: int | None = 30) -> ChatRecord:
    first_s = intended_s + ttft_s
    return ChatRecord(intended_s, intended_s, (first_s, first_s + 0.1), first_s + 0.1, 20, output_tokens, error)


ALONE = ChatPhase(0.0, [record(0.0, 0.1), record(9.8, 0.1)], EngineUse(10.0, 1, 0.0, 5.0))
HARVESTING = ChatPhase(100.0, [record(100.0, 0.2), record(119.7, 0.2)], EngineUse(20.0, 1, 18.0, 36.0))
BATCH = BatchPhase(BatchReport(status="completed", total=48, completed=48, failed=0), 20.0, TokenCount(16_000, 2_000))


def test_rates_have_the_denominators_that_are_stated() -> None:
    report = make_report(ALONE, HARVESTING, BATCH, "smol")
    alone, run = report.runs["online-only"], report.runs["conserve"]
    assert alone.total_tokens_per_s == pytest.approx(100 / 10)
    assert (run.offline_prompt_tokens_per_s, run.offline_output_tokens_per_s) == (800, 100)
    assert run.total_tokens_per_s == pytest.approx(900 + 100 / 20)
    assert run.offline_requests_per_s == pytest.approx(2.4)
    assert run.offline_busy_share == pytest.approx(0.9)
    assert run.harvested_cpu_s == pytest.approx(36 - 0.5 * 20)
    assert report.ratios["ttft_p99_vs_online_only"].median == pytest.approx(2)
    assert report.ratios["tbt_p50_vs_online_only"].median == pytest.approx(1)
    assert find_problems(ALONE, HARVESTING, BATCH) == []


def test_what_is_not_known_is_left_out() -> None:
    harvesting = ChatPhase(100.0, [record(100.0, 0.2, output_tokens=None)])
    report = make_report(ALONE, harvesting, BatchPhase(BATCH.report, 20.0, None), "smol")
    run = report.runs["conserve"].model_dump(exclude_none=True)
    assert set(run) == {
        *("duration_s", "ttft_ms", "tbt_ms", "send_lag_ms", "online_requests", "online_errors", "offline_requests"),
        *("offline_failed", "offline_duration_s", "offline_requests_per_s"),
    }
    assert "total_vs_online_only" not in report.ratios


def test_problems_are_told() -> None:
    failed = BatchReport(status="cancelled", total=48, completed=3, failed=2, error_file="errors.jsonl")
    alone = ChatPhase(0.0, [record(0.0, 0.1, error="broken"), record(1.0, 0.1)])
    batch = BatchPhase(failed, 300.0, None, ["no such model (model_not_found, line 3)"])
    assert find_problems(alone, ChatPhase(0.0, []), batch) == [
        "the batch is cancelled, not completed, after 300 s (3 of 48 requests done)",
        "2 of 48 requests of the batch failed, see errors.jsonl",
        "the batch was refused: no such model (model_not_found, line 3)",
        "1 of 2 chats alone failed, the first with: broken",
        "no chat was sent while harvesting",
    ]


def test_the_table_shows_what_is_known() -> None:
    console = Console(file=io.StringIO(), width=110)
    print_result(console, make_report(ALONE, HARVESTING, BATCH, "smol"), [Sample("a [bold]document", "It is. " * 90)])
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    for text in ("100 ms", "200 ms", "2.00 (2.0-2.0)", "48 / 0 / 48", "18 s (90 %)", "36 s, 1.8 cores", "26 s"):
        assert text in printed
    assert "a [bold]document: It is." in printed
    assert " ..." in printed


def status(replica_id: str = "r1", **fields: float) -> StatusReport:
    return StatusReport(replicas=[ReplicaStatus.model_validate({"replica_id": replica_id, **fields})])


def test_engine_use_is_the_growth_of_the_counters() -> None:
    use = measure_use(status(offline_busy_s=2.0, engine_cpu_s=1.0), status(offline_busy_s=5.0, engine_cpu_s=0.5))
    assert use is not None
    assert use.offline_busy_s == 3.0
    assert use.engine_cpu_s is None, "a counter that fell counts from a restart"
    assert measure_use(status("r1"), status("r2")) is None
    assert measure_use(None, status()) is None


@pytest.mark.asyncio
async def test_a_server_without_status_is_no_error() -> None:
    answers = iter([httpx.Response(404), httpx.Response(200, json={"replicas": [{"replica_id": "r1", "new": 1}]})])
    transport = httpx.MockTransport(lambda request: next(answers))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        reader = StatusReader(client)
        assert await reader.read() is None
        assert reader.problem is not None
        assert "404" in reader.problem
        report = await reader.read()
    assert report is not None
    assert report.replicas[0].window is None
    assert reader.problem is None


def test_the_live_view_shows_batch_engine_and_chats() -> None:
    view = DemoView(title="ConServe: smol")
    view.begin("Chat alone")
    view.begin("Chat beside a batch")
    view.batch = BatchProgress("in_progress", 48, 17, 1)
    view.status = status(window=8, offline_running=6, online_running=1, online_waiting=0, kv_usage=0.12)
    view.add_chat(record(0.0, 0.1))
    view.add_chat(record(0.0, 0.3, error="broken"))
    console = Console(file=io.StringIO(), width=100)
    console.print(DemoDisplay(console, view).render())
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    for text in (
        *("✓ Chat alone", "17 of 48 done, 1 failed", "window 8 · offline 6 running", "KV cache 12 %"),
        *("1 answered, 1 failed", "TTFT 200 ms, TBT 100 ms"),
    ):
        assert text in printed


def test_without_a_terminal_lines_are_printed() -> None:
    console = Console(file=io.StringIO(), width=60)
    view = DemoView()
    with DemoDisplay(console, view, plain_period_s=0.01) as display:
        display.begin("Chat alone")
        display.announce("a note")
        assert isinstance(console.file, io.StringIO)
        deadline_s = time.monotonic() + 30
        while "| Chat alone | a note" not in console.file.getvalue() and time.monotonic() < deadline_s:
            time.sleep(0.01)
    lines = console.file.getvalue().splitlines()
    assert all(re.match(r"\d:\d\d \| ", line) for line in lines)
    texts = [line.partition(" | ")[2] for line in lines]
    # The line of each period may come anywhere between the others.
    assert texts[0] == "Chat alone"
    assert texts.count("a note") == 1
    assert set(texts) == {"Chat alone", "a note", "Chat alone | a note"}
