"""What locust runs: `locust -f loadtests/front/locustfile.py --host http://127.0.0.1:8000`, with `--headless` or not.

Locust cannot be imported where Ray is: gevent replaces what Ray uses. So it always runs in a process of its own.

Users of locust wait for an answer before they send again (a closed loop), which hides how long a slow server makes
clients wait. Here one user of each kind keeps to a schedule and sends whatever is due, however slow the answers are.
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gevent
import gevent.pool
import grpc
import grpc.experimental.gevent
import locust.stats
from locust import LoadTestShape, User, events, task
from locust.exception import StopUser

from loadtests.batch_file import make_lines, write_batch_file
from loadtests.chat_record import ChatRecord
from loadtests.documents import Document
from loadtests.front.batch_job import BatchJob
from loadtests.front.calls import CallError, Calls
from loadtests.front.grpc_chat import make_grpc_chat, stream_grpc_chat
from loadtests.front.locust_options import add_options, to_plan
from loadtests.front.percentile_table import describe, render
from loadtests.front.record_file import RecordWriter
from loadtests.front.schedule import draw_schedule
from loadtests.front.streamed_chat import make_chat, stream_chat
from loadtests.front.wording import Wording
from loadtests.report import write_json
from loadtests.traces import TraceRequest

log = logging.getLogger("conserve.load")

# Before any channel is made: gRPC would block all greenlets otherwise.
grpc.experimental.gevent.init_gevent()

# What the console and the page show besides the median; locust rounds these to two digits, the summary does not.
locust.stats.PERCENTILES_TO_REPORT = [0.5, 0.9, 0.99, 1.0]
locust.stats.PERCENTILES_TO_STATISTICS = [0.9, 0.99]
locust.stats.PERCENTILES_TO_CHART = [0.5, 0.99]

TEMPLATE_WORDS = 30
"""About what the chat template adds to a prompt, in tokens."""
START_DELAY_S = 0.5
UNUSED = "127.0.0.1:1"
"""A channel connects when it is first used."""
STOP_LIMIT_S = 5.0
SHOWN_PROBLEMS = 5


class Load:
    """The load that is being run. Made anew when a test starts.

    Args:
        environment: Locust's.

    Raises:
        ValueError: an option is wrong (`TraceError` is one).
        CallError: the server does not say which models it has.
    """

    def __init__(self, environment: Any) -> None:
        options = environment.parsed_options
        self.options = options
        self.events = environment.events
        self.calls = Calls(environment.host)
        self.channel = grpc.insecure_channel(options.grpc or UNUSED)
        self.model: str = options.model or self._find_model()
        self.schedule: list[TraceRequest] = []
        if options.rate > 0:
            problems: list[str] = []
            self.schedule = draw_schedule(to_plan(options), problems)
            for problem in problems[:SHOWN_PROBLEMS]:
                log.warning("left out: %s", problem)
            if len(problems) > SHOWN_PROBLEMS:
                log.warning("left out: %d lines in all", len(problems))
        wording = Wording(options.words_seed, options.length_scale)
        self.texts = [
            wording.write(max(1, request.prompt_tokens - TEMPLATE_WORDS), request.prefix_ids)
            for request in self.schedule
        ]
        self.start_s = time.monotonic() + START_DELAY_S
        self.writer = RecordWriter(Path(options.records) if options.records else None, self.start_s)
        self.jobs: list[BatchJob] = []
        self.pending = {user.__name__ for user in USERS}
        self.is_stopping = False
        self.is_over = False

    def _find_model(self) -> str:
        models = self.calls.get_json("/v1/models").get("data") or []
        if not models:
            raise CallError("/v1/models names no model")
        return str(models[0]["id"])

    def fire(self, kind: str, name: str, time_ms: float, problem: Exception | None = None) -> None:
        """One sample of a metric of locust's."""
        self.events.request.fire(
            request_type=kind, name=name, response_time=time_ms, response_length=0, exception=problem, context={}
        )

    def finish(self) -> None:
        """Leaves no batch behind, and writes down what is known; harmless when called again."""
        if self.is_over:
            return
        self.is_over = True
        for job in self.jobs:
            job.give_up()
            self.writer.add_batch(job.to_record())
        self.writer.close()
        self.channel.close()
        summary = describe(self.writer.kept)
        if self.options.summary:
            write_json(Path(self.options.summary), summary)
        print(render(summary), flush=True)


def sleep_until(time_s: float) -> None:
    """By the monotonic clock."""
    gevent.sleep(max(0.0, time_s - time.monotonic()))


class ChatClients(User):
    """All chat clients: each chat is sent when it is due, in a greenlet of its own."""

    fixed_count = 1
    kind = "chat"

    @task
    def send_all(self) -> None:
        """Sends what is due and waits for the answers."""
        load: Load = self.environment.conserve_load
        if self.is_asked_for(load):
            self._send_all(load)
        load.pending.discard(type(self).__name__)
        raise StopUser

    def is_asked_for(self, load: Load) -> bool:
        """Whether the chats are this one's to send."""
        return not load.options.grpc

    def stream(self, load: Load, text: str, output_tokens: int, due_s: float) -> ChatRecord:
        """Sends a chat and reads its answer."""
        body = make_chat(load.model, text, output_tokens, exact=not load.options.any_length)
        return stream_chat(load.calls, body, due_s, timeout_s=load.options.chat_timeout_s)

    def _send_all(self, load: Load) -> None:
        chats = gevent.pool.Group()
        try:
            for request, text in zip(load.schedule, load.texts, strict=True):
                due_s = load.start_s + request.arrival_s
                sleep_until(due_s)
                chats.spawn(self._chat, load, text, request.output_tokens, due_s)
            sleep_until(load.start_s + load.options.online_s)
            chats.join(timeout=load.options.chat_timeout_s + 1)
        finally:
            chats.kill(block=False)

    def _chat(self, load: Load, text: str, output_tokens: int, due_s: float) -> None:
        record = self.stream(load, text, output_tokens, due_s)
        if load.is_over:
            return
        load.writer.add_chat(record)
        if record.ttft_ms is not None:
            load.fire(self.kind, "TTFT", record.ttft_ms)
        for gap_ms in record.tbt_ms:
            load.fire(self.kind, "TBT", gap_ms)
        problem = None if record.error is None else CallError(record.error)
        load.fire(self.kind, "end to end", (record.ended_s - record.intended_s) * 1e3, problem)


class GrpcChatClients(ChatClients):
    """The same over gRPC, where the options name an address for it."""

    kind = "grpc"

    def is_asked_for(self, load: Load) -> bool:
        """Whether the chats are this one's to send."""
        return bool(load.options.grpc)

    def stream(self, load: Load, text: str, output_tokens: int, due_s: float) -> ChatRecord:
        """Sends a chat and reads its answer."""
        request = make_grpc_chat(load.model, text, output_tokens, exact=not load.options.any_length)
        return stream_grpc_chat(load.channel, request, due_s, timeout_s=load.options.chat_timeout_s)


class BatchClients(User):
    """Submits batches at their times and polls each until it has ended."""

    fixed_count = 1

    @task
    def submit_all(self) -> None:
        """Submits and polls."""
        load: Load = self.environment.conserve_load
        options = load.options
        clients = gevent.pool.Group()
        end_s = load.start_s + options.online_s
        try:
            for number in range(options.batches):
                due_s = load.start_s + number * options.batch_every_s
                if due_s >= end_s:
                    break
                sleep_until(due_s)
                job = BatchJob(load.calls, due_s, lambda *call: load.fire("batch", *call))
                load.jobs.append(job)
                clients.spawn(self._submit_and_poll, load, job, number)
            sleep_until(end_s)
            clients.join(timeout=options.batch_wait_s)
        finally:
            # A client that is killed while it creates a batch would not know which one to cancel.
            load.is_stopping = True
            clients.join(timeout=STOP_LIMIT_S)
            clients.kill(block=False)
        load.pending.discard(type(self).__name__)
        raise StopUser

    def _submit_and_poll(self, load: Load, job: BatchJob, number: int) -> None:
        options = load.options
        # Texts of their own, which no other batch and no chat has.
        wording = Wording(options.words_seed * 1_000 + number + 1)
        texts = [
            Document(f"{number}-{index}", wording.write(options.batch_words)) for index in range(options.batch_requests)
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"batch-{number}.jsonl"
            write_batch_file(path, make_lines(texts, len(texts), load.model, options.batch_output_tokens))
            job.submit(path)
        while job.is_open and not load.is_stopping:
            gevent.sleep(options.poll_s)
            job.poll()


USERS = (ChatClients, GrpcChatClients, BatchClients)


class UntilAllIsSent(LoadTestShape):
    """One user of each kind, until the schedule is over."""

    def tick(self) -> tuple[int, float] | None:
        """What locust asks for once a second."""
        environment = self.runner.environment
        load: Load | None = getattr(environment, "conserve_load", None)
        is_over = getattr(environment, "conserve_is_ended", False) or (load is not None and not load.pending)
        return None if is_over else (len(USERS), float(len(USERS)))


@events.init_command_line_parser.add_listener
def _add_options(parser: Any) -> None:
    add_options(parser)


@events.test_start.add_listener
def _prepare(environment: Any, **_: Any) -> None:
    try:
        environment.conserve_load = Load(environment)
    except (ValueError, CallError) as error:
        log.error("The load cannot be run: %s", error)
        environment.process_exit_code = 1
        if environment.web_ui is None:
            sys.exit(1)
        environment.runner.quit()


@events.test_stop.add_listener
def _finish(environment: Any, **_: Any) -> None:
    load: Load | None = getattr(environment, "conserve_load", None)
    if load is not None:
        load.finish()


@events.init.add_listener
def _end_in_order(environment: Any, **_: Any) -> None:
    """SIGTERM ends the load as its own end does. Locust 2.47 has no handler yet while a shape runs without its page."""
    gevent.signal_handler(signal.SIGTERM, setattr, environment, "conserve_is_ended", True)


@events.init.add_listener
def _add_page(environment: Any, **_: Any) -> None:
    """`/latencies` of locust's page: the exact percentiles so far, as JSON."""
    if environment.web_ui is None:
        return

    @environment.web_ui.app.route("/latencies")
    def latencies() -> dict[str, Any]:
        load: Load | None = getattr(environment, "conserve_load", None)
        return describe(load.writer.kept) if load is not None else {}
