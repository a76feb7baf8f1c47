"""Loads of a real locust process against a fake server, and a whole load test of one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi import Request
from fastapi.responses import StreamingResponse
from rich.console import Console

from conserve.jobs.errors import ApiError
from conserve.launch.interruption import Interruption
from conserve.launch.serve_config import read_serve_config
from deployments.grpc_front.methods import GrpcMethods
from deployments.ray_compat import ChatCompletionRequest
from loadtests.front.conductor import LoadPlan, LoadTest, LoadTestError
from loadtests.front.locust_process import LocustError, run_locust
from loadtests.front.record_file import read_records
from loadtests.front.schedule import OnlinePlan
from loadtests.loadtest import LoadTestOptions, conduct
from loadtests.report import read_report
from tests.grpc_server import serve_on_port
from tests.integration.bench import TIMEOUT_S
from tests.integration.loadtests.conftest import MODEL

REPOSITORY = Path(__file__).parents[3]


@contextlib.contextmanager
def serve_in_thread(front: GrpcFront) -> Iterator[int]:
    """The port of a gRPC server that runs meanwhile, beside what blocks this thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    served = serve_on_port(front)
    try:
        yield asyncio.run_coroutine_threadsafe(served.__aenter__(), loop).result(TIMEOUT_S)
        asyncio.run_coroutine_threadsafe(served.__aexit__(None, None, None), loop).result(TIMEOUT_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(TIMEOUT_S)
        loop.close()


async def test_a_slow_server_delays_no_request_and_its_delay_is_in_the_latency(server: Any, tmp_path: Path) -> None:
    """No chat is answered before the fifteenth has come, so a client that waits for answers gets none."""
    server.chats_until_answers = 15
    options = ["--rate", "20", "--online-s", "2", "--arrivals", "poisson", "--max-output-tokens", "4"]
    records = tmp_path / "records.jsonl"
    options += ["--length-scale", "1", "--records", str(records), "--summary", str(tmp_path / "summary.json")]
    await run_locust(server.base_url, options, tmp_path / "log", 2 * TIMEOUT_S)
    found = read_records(records)
    assert len(found.chats) == pytest.approx(40, abs=20)
    assert not [record.error for record in found.chats if record.error is not None]
    chats = sorted(found.chats, key=lambda record: record.intended_s)
    assert chats[0].ttft_ms is not None
    assert chats[0].ttft_ms > (chats[14].sent_s - chats[0].intended_s) * 1e3 > 0
    assert [len(record.content_s) for record in found.chats] == [4] * len(found.chats)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["online_requests"] == len(found.chats)
    assert summary["ttft_ms"]["p99"] <= max(record.ttft_ms or 0.0 for record in found.chats)
    assert {"chat     TTFT", "chat     TBT", "chat     end to end"} <= _metrics((tmp_path / "log").read_text())


class GrpcFront(GrpcMethods):
    """Streams as many words as are asked for; every third chat fails, or none."""

    def __init__(self, *, fails: bool = True) -> None:
        self.only_model = MODEL
        self.fails = fails
        self.asked: list[dict[str, Any]] = []

    async def chat(self, body: ChatCompletionRequest, request: Request) -> StreamingResponse:
        asked = body.model_dump()
        self.asked.append(asked)
        if self.fails and len(self.asked) % 3 == 0:
            raise ApiError(503, "overloaded")
        return StreamingResponse(self._stream(asked["max_tokens"]))

    async def _stream(self, count: int) -> AsyncIterator[str]:
        def event(**fields: Any) -> str:
            return f"data: {json.dumps({'id': 'c', 'model': MODEL, **fields})}\n\n"

        for _ in range(count):
            yield event(choices=[{"index": 0, "delta": {"content": "word "}}])
        yield event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}])
        yield event(choices=[], usage={"prompt_tokens": 20, "completion_tokens": count})
        yield "data: [DONE]\n\n"


async def test_chats_go_over_grpc_where_it_has_an_address(server: Any, tmp_path: Path) -> None:
    server.fail_chats = True  # None of them goes there.
    records = tmp_path / "records.jsonl"
    options = ["--rate", "20", "--online-s", "1", "--arrivals", "poisson", "--max-output-tokens", "4"]
    options += ["--length-scale", "1", "--records", str(records)]
    front = GrpcFront()
    async with serve_on_port(front) as port:
        await run_locust(server.base_url, [*options, "--grpc", f"127.0.0.1:{port}"], tmp_path / "log", 2 * TIMEOUT_S)
    chats = read_records(records).chats
    assert len(chats) == len(front.asked) == pytest.approx(20, abs=15)
    assert {(asked["model"], asked["max_tokens"], asked["ignore_eos"]) for asked in front.asked} == {(MODEL, 4, True)}
    answered = [chat for chat in chats if chat.error is None]
    assert {(len(chat.content_s), chat.prompt_tokens, chat.output_tokens) for chat in answered} == {(4, 20, 4)}
    assert {chat.error for chat in chats} == {None, "UNAVAILABLE: overloaded"}
    assert len(answered) == len(chats) - len(chats) // 3
    log = (tmp_path / "log").read_text()
    assert {"grpc     TTFT", "grpc     TBT", "grpc     end to end"} <= _metrics(log)


def _metrics(log: str) -> set[str]:
    return {line[:27].rstrip() for line in log.splitlines() if line.startswith(("chat ", "grpc ", "batch "))}


async def test_a_load_that_is_cancelled_leaves_neither_locust_nor_batch_behind(server: Any, tmp_path: Path) -> None:
    server.request_s = 0.5
    options = ["--rate", "5", "--online-s", "60", "--batches", "1", "--batch-requests", "1000"]
    load = asyncio.create_task(run_locust(server.base_url, options, tmp_path / "log", 2 * TIMEOUT_S))
    async with asyncio.timeout(TIMEOUT_S):
        while not server.batches:
            await asyncio.sleep(0.05)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    (batch,) = server.batches.values()
    assert batch["status"] in ("cancelling", "cancelled")
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if server.base_url in command]


async def test_a_wrong_trace_is_named(server: Any, tmp_path: Path) -> None:
    with pytest.raises(LocustError, match="there is no such trace"):
        await run_locust(server.base_url, ["--traces", str(tmp_path / "no")], tmp_path / "log", 2 * TIMEOUT_S)


def test_a_whole_load_test(server: Any, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    online = OnlinePlan(duration_s=2.0, rate_per_s=10.0, arrivals="poisson", length_scale=0.125)
    front = GrpcFront(fails=False)
    config = read_serve_config(REPOSITORY / "serve_config.yaml")
    with serve_in_thread(front) as port, Interruption() as interruption:
        options = LoadTestOptions(
            online, "generated", 3.0, tmp_path, server.base_url, f"127.0.0.1:{port}", turns=0, grpc_turns=5
        )
        code = conduct(options, config, console, None, interruption)
    assert isinstance(console.file, io.StringIO)
    assert code == 0, console.file.getvalue()
    report = read_report(tmp_path / "summary.json")
    alone, beside = report.runs["online-only"], report.runs["conserve"]
    assert alone.online_errors == beside.online_errors == 0
    assert alone.offline_tokens_per_s is None
    # 60 requests of 390 tokens, within seconds.
    assert beside.offline_tokens_per_s is not None
    assert 60 * 390 / 20 < beside.offline_tokens_per_s < 60 * 390 / 1.2
    assert (beside.offline_requests, beside.offline_failed) == (60, 0)
    assert "ttft_p99_vs_online_only" in report.ratios
    at_once = config.settings.engine.max_num_seqs
    for entrance in ("http", "grpc"):
        single, rounds = report.runs[entrance], report.runs[f"{entrance}-at-once"]
        assert (single.online_requests, rounds.online_requests) == (5, 2 * at_once)
        assert None not in (single.ttft_ms, single.tbt_ms, single.end_to_end_ms, rounds.online_output_tokens_per_s)
    assert {"ttft_p50_grpc_vs_http", "output_tokens_grpc_vs_http"} <= report.ratios.keys()
    # With the warm-up: two chats and a round.
    assert len(front.asked) == 7 + 3 * at_once
    assert "over gRPC, beside the same over HTTP" in (tmp_path / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} >= {"report.html", "latency.png", "timeline.png"}
    assert [batch["status"] for batch in server.batches.values()] == ["completed"]


async def test_a_server_that_fails_chats_ends_the_load_test(server: Any, tmp_path: Path) -> None:
    server.fail_chats = True
    plan = LoadPlan(OnlinePlan(duration_s=1.0, rate_per_s=1.0), 1.0, tmp_path)
    with pytest.raises(LoadTestError, match="the first chats failed: POST /v1/chat/completions: HTTP 503"):
        await LoadTest(plan, server.base_url, lambda line: None).run()


def test_the_command_refuses_a_trace_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.loadtest", "--traces", str(tmp_path / "no"), "--out", str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 2
    assert "there is no such trace or folder" in done.stderr
