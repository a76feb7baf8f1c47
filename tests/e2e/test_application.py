"""Starts the whole application with the real engine; the tests run in this order on one stack."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import psutil
import pytest
from openai.types import Batch
from openai.types.chat import ChatCompletionMessageParam
from typer.testing import CliRunner

from conserve import Client
from conserve.cli.main import app
from conserve.launch.paths import ray_temp_dir
from conserve.models import cache_folder
from conserve.telemetry.spans import QUEUE_TIME
from deployments.protos import conserve_pb2 as pb
from deployments.protos.conserve_pb2_grpc import GenerationServiceStub
from tests.documented_commands import COMMANDS, Live, list_blocks, list_commands
from tests.e2e.conftest import CONFIG, MODEL, TIMEOUT_S, Application, make_lines
from tests.e2e.prometheus import list_panel_queries, list_rule_queries, scraping
from tests.traces import CLIENT_SPAN, CLIENT_TRACE, TRACEPARENT, Collector, Received

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
MODEL_METRICS = ("conserve_headroom_", "conserve_latency_model_error_", "conserve_stranded_")
"""Those of the latency model: there are none before it has learnt enough."""
METRICS_LIMIT_S = 240.0
"""Until all metrics have got through Ray to Prometheus, and every rate has something to be of."""

CAPITAL: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]

BAD: list[dict[str, Any]] = [
    {"messages": "hello"},
    {"messages": CAPITAL, "max_tokens": -1},
    {"messages": [{"role": "user", "content": "word " * 6000}]},
    {"messages": CAPITAL, "slo_class": "nobody"},
]


def ask(application: Application) -> str:
    answer = application.client().chat.completions.create(
        model=MODEL,
        messages=CAPITAL,
        max_tokens=16,
        temperature=0,
    )
    return answer.choices[0].message.content or ""


def test_it_is_ready_and_names_its_model(application: Application) -> None:
    assert httpx.get(f"{application.base_url}/health", timeout=TIMEOUT_S).status_code == 200
    assert [model.id for model in application.client().models.list()] == [MODEL]


def test_haproxy_stands_in_front(application: Application) -> None:
    listeners = {
        process.name()
        for process in application.processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == application.http_port
    }
    assert listeners == {"haproxy"}


def test_chat_answers_whole_and_streamed(application: Application) -> None:
    assert "Paris" in ask(application)
    stream = application.client().chat.completions.create(
        model=MODEL,
        messages=CAPITAL,
        max_tokens=16,
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 3


def test_texts_are_in_no_log_and_nothing_for_clients_listens_beyond_loopback(application: Application) -> None:
    marker = f"marker {uuid.uuid4().hex}"
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": marker}]
    application.client().chat.completions.create(model=MODEL, messages=messages, max_tokens=2)
    line = {"custom_id": "marked", "method": "POST", "url": "/v1/chat/completions"}
    batch = application.submit([{**line, "body": {"model": MODEL, "messages": messages, "max_tokens": 2}}])
    assert application.wait_for(batch.id).status == "completed"
    for folder in (application.stack.log_dir, application.state_dir):
        logs = [
            path for path in folder.rglob("*") if path.is_file() and path.suffix in (".log", ".out", ".err", ".json")
        ]
        assert logs
        assert [path for path in logs if marker in path.read_text(errors="replace")] == []
    own = (application.http_port, application.grpc_port)
    for process in application.processes():
        title = " ".join(process.cmdline())
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.ip != "127.0.0.1":
                # What Ray's own processes have open asks for Ray's token.
                assert process.name() != "haproxy", connection.laddr
                assert connection.laddr.port not in own, title


def test_completions_answer(application: Application) -> None:
    answer = application.client().completions.create(model=MODEL, prompt="Once upon a time", max_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "nobody", "messages": CAPITAL}, 404, None),
        ({"model": MODEL, "messages": "hello"}, 400, "messages"),
        ({"model": MODEL, "messages": CAPITAL, "max_tokens": -1}, 400, "max_tokens"),
        ({"model": MODEL, "messages": CAPITAL, "stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "word " * 6000}]}, 400, None),
        ({"model": MODEL, "messages": CAPITAL, "slo_class": "nobody"}, 400, "slo_class"),
    ],
)
def test_bad_chat_is_refused_in_openai_s_form(
    application: Application, body: dict[str, object], status: int, param: str | None
) -> None:
    response = httpx.post(f"{application.base_url}/v1/chat/completions", json=body, timeout=TIMEOUT_S)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if param:
        assert error["param"] == param
    assert "Traceback" not in response.text


def test_bad_batches_are_refused(application: Application) -> None:
    client = application.client()
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_0123456789abcdef")
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(
            input_file_id="file-0123456789abcdef", endpoint="/v1/chat/completions", completion_window="24h"
        )
    assert caught.value.param == "input_file_id"
    twice = make_lines(2)
    twice[1]["custom_id"] = twice[0]["custom_id"]
    batch = application.wait_for(application.submit(twice).id)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.code, error.line) for error in batch.errors.data or []] == [("duplicate_custom_id", 2)]


def test_flex_requests_get_the_same_answer_later(application: Application) -> None:
    client = application.client()
    answer = client.chat.completions.create(
        model=MODEL, messages=CAPITAL, max_tokens=16, temperature=0, service_tier="flex"
    )
    assert answer.choices[0].message.content == ask(application)
    assert answer.service_tier == "flex"
    stream = client.chat.completions.create(
        model=MODEL, messages=CAPITAL, max_tokens=16, temperature=0, service_tier="flex", stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    assert len(chunks) > 3
    assert {chunk.service_tier for chunk in chunks} == {"flex"}
    extra = {"service_tier": "flex"}
    completion = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=5, extra_body=extra)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 5
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "word " * 6000}], service_tier="flex"
        )


def test_grpc_answers_as_http_does(application: Application) -> None:
    example = [sys.executable, "docs/examples/grpc_client.py", application.grpc_address]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        example, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, rest = line.partition(":")
        said.setdefault(name, []).append(rest.strip())
    assert said["answer"] == said["stream"] == [ask(application).strip()]
    assert sorted(said["result"]) == ["Oslo 200", "Paris 200", "Rome 200"]
    assert said["batch"] == ["BATCH_STATUS_COMPLETED 3 done"]
    assert (said["refused"], said["field"]) == (["INVALID_ARGUMENT"], ["sampling.temperature"])


def test_a_chat_is_traced_from_the_client_to_the_engine(application: Application, collector: Collector) -> None:
    answer = application.client().chat.completions.create(
        model=MODEL,
        messages=CAPITAL,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"traceparent": TRACEPARENT},
    )
    usage = [chunk.usage for chunk in answer][-1]
    assert usage is not None

    def find(name: str) -> Received:
        return collector.wait_for(lambda span: span.trace == CLIENT_TRACE and span.name == name, 1)[-1]

    # Whatever else there is of the trace, such as a route that was refused and asked for anew.
    front, routed, engine = (find(name) for name in ("POST /v1/chat/completions", "route", f"chat {MODEL}"))
    assert (front.parent, routed.parent, engine.parent) == (CLIENT_SPAN, front.id, front.id)
    assert routed.attributes["conserve.route.replica"] == engine.resource["service.instance.id"]
    queue_s, first_s = (engine.attributes[name] for name in (QUEUE_TIME, "gen_ai.response.time_to_first_chunk"))
    assert 0 <= queue_s <= engine.duration_s
    assert 0 < first_s <= engine.duration_s
    for span in (front, engine):
        assert span.attributes["conserve.outcome"] == "answered"
        assert span.attributes["gen_ai.usage.input_tokens"] == usage.prompt_tokens
        assert span.attributes["gen_ai.usage.output_tokens"] == usage.completion_tokens
    assert {span.trace for span in collector.received} == {CLIENT_TRACE}, "others were not sampled"


@pytest.mark.parametrize("ending", ["cancelled", "deadline"])
def test_a_grpc_request_that_ends_early_frees_its_kv_blocks(application: Application, ending: str) -> None:
    def read_load() -> tuple[int, float]:
        (replica,) = application.status()["replicas"]
        return replica["online_running"], replica["kv_usage"]

    def wait_for(is_reached: Callable[[], bool], bound_s: float) -> None:
        until_s = time.monotonic() + bound_s
        while not is_reached():
            assert time.monotonic() < until_s, application.status()
            time.sleep(0.05)

    wait_for(lambda: read_load()[0] == 0, TIMEOUT_S)
    _, idle = read_load()
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Count. " * 200)])
    sampling = pb.Sampling(max_tokens=3_000, ignore_eos=True)
    with grpc.insecure_channel(application.grpc_address) as channel:
        generation = GenerationServiceStub(channel)
        if ending == "cancelled":
            stream = generation.GenerateStream(
                pb.GenerateStreamRequest(chat=chat, sampling=sampling), timeout=TIMEOUT_S
            )
            first_s = [time.monotonic() for _, _ in zip(range(20), stream, strict=False)]
            rest_s = (first_s[-1] - first_s[0]) / len(first_s) * 3_000
            wait_for(lambda: read_load()[0] > 0 and read_load()[1] > idle, TIMEOUT_S)
            stream.cancel()
        else:
            rest_s = TIMEOUT_S
            with pytest.raises(grpc.RpcError) as ended:
                generation.Generate(pb.GenerateRequest(chat=chat, sampling=sampling), timeout=3)
            assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        # Long before it would have been done.
        wait_for(lambda: read_load() == (0, idle), rest_s / 2)


def test_the_python_client_and_the_command_line(application: Application) -> None:
    with Client(application.base_url) as client:
        results = list(client.map(["What is the capital of France?"] * 3, body={"max_tokens": 16, "temperature": 0}))
        assert [result.text for result in results] == [ask(application)] * 3
        assert client.is_ready()
        (replica,) = client.status().replicas
        assert replica.model == MODEL
    config = ["-f", str(CONFIG)]
    environ = {"CONSERVE_URL": application.base_url, "CONSERVE_STATE_DIR": str(application.state_dir)}
    runner = CliRunner(env=environ)
    shown = runner.invoke(app, ["top", "--count", "1"])
    assert "replicas: 1 serving" in shown.stdout, shown.output
    listed = json.loads(runner.invoke(app, ["batch", "list", "--limit", "1", "--json"]).stdout)
    assert listed[0]["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    found = json.loads(runner.invoke(app, ["doctor", "--json", *config]).stdout)
    states = {one["what"]: one["state"] for one in found}
    assert {states[name] for name in ("Stack", "Ray Serve", "Redis", "vLLM", "Model")} == {"fine"}, found


def test_what_the_documentation_says_can_be_done(application: Application, tmp_path: Path) -> None:
    """Its commands and programs as they stand, but for addresses and the id of a batch."""
    binaries = Path(sys.executable).parent
    environ = os.environ | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CONSERVE_URL": application.base_url,
        "CONSERVE_CONFIG": str(CONFIG),
        "CONSERVE_STATE_DIR": str(application.state_dir),
        "HF_HUB_OFFLINE": "1",
        "MODEL": str(cache_folder() / "models" / MODEL),
    }
    (tmp_path / "docs").symlink_to(ROOT / "docs")

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def localise(text: str) -> str:
        text = text.replace("http://127.0.0.1:8000", application.base_url).replace(".venv/bin/", "")
        return text.replace("127.0.0.1:9000", application.grpc_address)

    batch_id = ""
    commands = list_commands()
    for name in (name for name, treatment in COMMANDS.items() if isinstance(treatment, Live)):
        said = run("bash", "-c", localise(commands[name]).replace("BATCH", batch_id))
        if name.startswith("conserve batch submit"):
            (batch_id,) = set(re.findall(r"batch_\w+", said))
        elif not name.startswith("cat"):
            assert said.strip(), name
    for block in list_blocks():
        if block.language == "python" and block.page.name in ("README.md", "serve.md", "objectives.md"):
            assert "127.0.0.1:8000" in block.text
            assert run(sys.executable, "-c", localise(block.text)).strip()


def test_a_batch_is_worked_off_while_chats_arrive(application: Application) -> None:
    lines = make_lines(40, max_tokens=48)
    lines[7]["body"]["messages"][0]["content"] = "word " * 6000  # longer than the context: fails alone
    answers: list[str] = []
    over = threading.Event()

    def chat() -> None:
        while not over.wait(0.1):
            answers.append(ask(application))

    chatter = threading.Thread(target=chat)
    chatter.start()
    try:
        batch = application.wait_for(application.submit(lines).id)
    finally:
        over.set()
        chatter.join(TIMEOUT_S)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (40, 39, 1)
    expected = {f"line-{number}" for number in range(40)}
    output, errors = application.read_ids(batch.output_file_id), application.read_ids(batch.error_file_id)
    assert sorted(output + errors) == sorted(expected)
    assert errors == ["line-7"]
    assert len(answers) >= 3
    assert all("Paris" in answer for answer in answers)
    (replica,) = application.status()["replicas"]
    assert replica["offline_requests"] >= 40
    assert replica["offline_busy_s"] > 0
    assert replica["engine_cpu_s"] > 0


def test_the_console_hears_what_chats_feel_and_what_batches_compute(application: Application) -> None:
    assert httpx.get(f"{application.base_url}/console", timeout=TIMEOUT_S).text.startswith("<!doctype html>")
    batch = application.submit(make_lines(4))
    client = application.client()
    url = f"{application.base_url}/conserve/v1/events"
    seen: dict[str, Any] = {}
    until_s = time.monotonic() + TIMEOUT_S
    with httpx.stream("GET", url, timeout=TIMEOUT_S) as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        for piece in client.chat.completions.create(model=MODEL, messages=CAPITAL, max_tokens=16, stream=True):
            assert piece.id
        name = ""
        for line in events.iter_lines():
            assert time.monotonic() < until_s, seen
            name = line.removeprefix("event: ") if line.startswith("event: ") else name
            if line.startswith("data: "):
                seen[name] = json.loads(line.removeprefix("data: "))
            reported = next(iter(seen.get("replicas", {}).get("replicas", [])), {})
            latency = reported.get("latency", {}).get("default", {})
            if latency.get("ttft_p95_ms") and latency.get("tbt_p95_ms") and "batches" in seen:
                break
    (replica,) = seen["replicas"]["replicas"]
    assert (replica["state"], seen["hello"]["model"]) == ("serving", MODEL)
    assert None not in (replica["stops"], replica["restored_tokens"], replica["offline_computed_tokens"])
    assert batch.id in [one["id"] for one in seen["batches"]["batches"]]
    assert application.wait_for(batch.id).status == "completed"


def test_the_engine_lets_go_of_an_answer_whose_client_has_left(application: Application) -> None:
    """Also of one that was to come whole: nothing is written until its end, so only the proxy can see it."""
    long = {"model": MODEL, "messages": CAPITAL, "max_tokens": 2_000, "ignore_eos": True}
    before = application.status()["replicas"][0]["online_requests"]
    for _ in range(3):
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{application.base_url}/v1/chat/completions", json=long, timeout=1)
    deadline_s = time.monotonic() + 20  # A small part of what the answers would take.
    while time.monotonic() < deadline_s:
        replica = application.status()["replicas"][0]
        if replica["online_requests"] > before and replica["online_running"] + replica["online_waiting"] == 0:
            return
        time.sleep(0.5)
    pytest.fail(f"{replica['online_running'] + replica['online_waiting']} are still in the engine")


def test_passes_go_on_beside_requests_that_are_refused_or_many_or_gone(application: Application) -> None:
    """Each is announced to the engine before it is known what becomes of it; the passes that run meanwhile go on."""
    batch = application.submit(make_lines(10, words=600))
    application.wait_for(batch.id, completed=1)
    client = application.client()
    url = f"{application.base_url}/v1/chat/completions"

    def refuse() -> None:
        for body in BAD * 8:
            assert httpx.post(url, json={"model": MODEL, **body}, timeout=TIMEOUT_S).status_code == 400

    def leave() -> None:
        # Of an answer that takes minutes: this process may be the one that has to wait.
        long = {"model": MODEL, "messages": CAPITAL, "max_tokens": 2_000, "ignore_eos": True}
        for _ in range(8):
            with pytest.raises(httpx.TimeoutException):
                httpx.post(url, json=long, timeout=0.1)

    def ask_for_many() -> None:
        four = client.chat.completions.create(
            model=MODEL,
            messages=CAPITAL,
            n=4,
            max_tokens=8,
        )
        assert len(four.choices) == 4
        prompts = client.completions.create(model=MODEL, prompt=["One", "Two", "Three"], n=2, max_tokens=4)
        assert sorted(choice.index for choice in prompts.choices) == [*range(6)]

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(call) for call in (refuse, leave, ask_for_many, ask_for_many)]:
            done.result(timeout=2 * TIMEOUT_S)
    batch = application.wait_for(batch.id)
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.completed) == ("completed", 10)


def test_a_cancelled_batch_keeps_what_is_done(application: Application) -> None:
    batch = application.submit(make_lines(60))
    application.wait_for(batch.id, completed=3)
    assert application.client().batches.cancel(batch.id).status in ("cancelling", "cancelled")
    assert application.client().batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = application.wait_for(batch.id)
    assert batch.status == "cancelled"
    output, errors = application.read_ids(batch.output_file_id), application.read_ids(batch.error_file_id)
    assert len(output) >= 3
    assert errors
    assert sorted(output + errors) == sorted(f"line-{number}" for number in range(60))
    assert "Paris" in ask(application)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not here (Debian: package prometheus)")
def test_prometheus_has_an_answer_to_what_every_panel_and_every_rule_asks(
    application: Application, tmp_path: Path
) -> None:
    client = application.client()
    batch = application.submit(make_lines(400, words=300))
    ended = threading.Event()

    def chat() -> None:
        # Of all sizes, which the latency model wants to have seen.
        for length in itertools.cycle(range(1, 400, 30)):
            if ended.is_set():
                return
            question = "Count to ten. " * length
            for _ in client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": question}], max_tokens=16, stream=True
            ):
                pass

    open_ = list_panel_queries() | list_rule_queries()
    assert len(open_) > 80
    with (
        scraping(ray_temp_dir(application.state_dir), tmp_path) as prometheus,
        ThreadPoolExecutor(1) as pool,
    ):
        chats = pool.submit(chat)
        try:
            deadline_s = time.monotonic() + METRICS_LIMIT_S
            while open_ and time.monotonic() < deadline_s and not chats.done():
                time.sleep(2)
                open_ = {name: expr for name, expr in open_.items() if not prometheus.ask(expr)}
                if prometheus.ask("sum(ray_conserve_stops_total) == 0"):
                    # Whether a pass is stopped depends on how fast this machine is.
                    open_ = {name: expr for name, expr in open_.items() if "conserve_stop_" not in expr}
            assert prometheus.ask("sum(ray_vllm_time_to_first_token_seconds_count) > 0")
            if prometheus.ask("sum(ray_conserve_latency_model_ready) == 0"):
                # On a slow machine it has not seen enough iterations in that time.
                open_ = {name: expr for name, expr in open_.items() if not any(one in expr for one in MODEL_METRICS)}
        finally:
            ended.set()
            client.batches.cancel(batch.id)
        chats.result(timeout=TIMEOUT_S)
    assert open_ == {}


def test_everything_killed_in_the_middle_and_nothing_lost(application: Application) -> None:
    """After SIGKILL to all processes it comes up again, now with two replicas, and ends what it had begun."""
    finished = application.submit(make_lines(2))
    finished_file = application.wait_for(finished.id).output_file_id
    batch = application.submit(make_lines(60))
    application.wait_for(batch.id, completed=5)
    application.kill()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{application.base_url}/health", timeout=5)

    application.up(CONSERVE_REPLICAS="2")
    batch = application.wait_for(batch.id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (60, 0)
    assert sorted(application.read_ids(batch.output_file_id)) == sorted(f"line-{number}" for number in range(60))
    assert len(application.read_ids(finished_file)) == 2

    replicas = application.status()["replicas"]
    if not all(replica["offline_requests"] > 0 for replica in replicas):
        # One of them was ready when the other had done all the work.
        application.wait_for(application.submit(make_lines(40)).id)
        replicas = application.status()["replicas"]
    assert len(replicas) == 2
    assert all(replica["offline_requests"] > 0 for replica in replicas)
    assert "Paris" in ask(application)


def test_online_requests_are_answered_while_redis_is_gone(application: Application) -> None:
    batch = application.submit(make_lines(20))
    application.wait_for(batch.id, completed=1)
    for _ in range(2):
        application.kill_redis()
        assert "Paris" in ask(application)
        deadline_s = time.monotonic() + TIMEOUT_S
        while httpx.get(f"{application.base_url}/v1/batches", timeout=TIMEOUT_S).status_code != 200:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
    batch = application.wait_for(batch.id)
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 20, 0)


def test_answers_go_on_where_they_were_when_the_replicas_are_killed(application: Application) -> None:
    lines = make_lines(6, words=12, max_tokens=200)
    for line in lines:
        line["body"]["ignore_eos"] = True
    undisturbed = read_answers(application, application.wait_for(application.submit(lines).id))
    assert {tokens for _, tokens in undisturbed.values()} == {200}

    def count(name: str) -> int:
        return sum(int(replica[name]) for replica in application.status()["replicas"])

    def wait_for_more_than(most: int, name: str) -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while count(name) <= most:
            assert time.monotonic() < deadline_s, application.status()
            time.sleep(0.05)

    before = count("journaled_tokens")
    batch = application.submit(lines)
    wait_for_more_than(before + 100, "journaled_tokens")
    assert application.client().batches.retrieve(batch.id).status == "in_progress"
    assert application.kill_replicas() > 0
    assert read_answers(application, application.wait_for(batch.id)) == undisturbed
    # Replicas report some times a second.
    wait_for_more_than(0, "resumed_requests")
    wait_for_more_than(100, "reused_tokens")


def read_answers(application: Application, batch: Batch) -> dict[str, tuple[str, int]]:
    """Custom id -> text and tokens of each answer in the output file."""
    assert batch.output_file_id is not None
    answers = {}
    for text in application.client().files.content(batch.output_file_id).text.splitlines():
        line = json.loads(text)
        body = line["response"]["body"]
        message = body["choices"][0]["message"]["content"]
        answers[line["custom_id"]] = (message, body["usage"]["completion_tokens"])
    assert len(answers) == 6
    return answers
