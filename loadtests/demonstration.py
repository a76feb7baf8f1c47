"""The measured part of the demonstration, against any running application: chat alone, then chat beside a batch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from openai import AsyncOpenAI, OpenAIError
from openai.types import Batch, BatchError

from loadtests import arrivals
from loadtests.batch_file import (
    ENDPOINT,
    ResultLine,
    count_tokens,
    find_id_problems,
    make_lines,
    read_result_lines,
    write_batch_file,
)
from loadtests.chat_load import ChatLoad, ChatRecord
from loadtests.chat_prompts import ChatPrompt, draw_prompts
from loadtests.demo_report import BatchPhase, ChatPhase, find_problems, make_report
from loadtests.demo_table import Sample
from loadtests.display import BatchProgress, DemoDisplay, DemoView
from loadtests.documents import Document
from loadtests.engine_status import StatusReader, measure_use
from loadtests.report import BatchReport, Report, write_report

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
CONTROL_TIMEOUT_S = 30.0
STATUS_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 5.0
SAMPLES = 2


class DemoError(RuntimeError):
    """The demonstration cannot go on; the message says why."""


@dataclass(frozen=True)
class DemoPlan:
    """What to do.

    Attributes:
        documents: Texts to be summarised.
        out: Folder of the files that stay.
        requests: Lines of the batch.
        summary_tokens: Most tokens of a summary.
        alone_s: How long chats are sent before there is a batch.
        chat_rate_per_s: Mean rate of chats (Poisson arrivals).
        batch_limit_s: The batch is cancelled when it has not ended after this time.
        request_timeout_s: Bound of one chat.
        ready_timeout_s: Bound of the wait for `/health`.
        cancel_grace_s: How long a cancelled batch may take to end, so that its results can be fetched.
        warm_up_chats: Chats before anything is measured.
        poll_s: Period of reading the batch and the status.
        seed: Of arrivals and prompts.
    """

    documents: Sequence[Document]
    out: Path
    requests: int = 120
    summary_tokens: int = 48
    alone_s: float = 60.0
    chat_rate_per_s: float = 0.7
    batch_limit_s: float = 300.0
    request_timeout_s: float = 60.0
    ready_timeout_s: float = 120.0
    cancel_grace_s: float = 20.0
    warm_up_chats: int = 4
    poll_s: float = 1.0
    seed: int = 7


@dataclass(frozen=True)
class DemoResult:
    """What came of it. `problems` is empty after a success."""

    report: Report
    samples: list[Sample]
    problems: list[str]
    files: list[Path]


@dataclass(frozen=True)
class _Results:
    lines: list[ResultLine]
    output_file: str | None
    error_file: str | None


class Demonstration:
    """Runs a `DemoPlan` against the application at `base_url`, keeping `view` up to date."""

    def __init__(self, plan: DemoPlan, base_url: str, view: DemoView, display: DemoDisplay) -> None:
        self._plan = plan
        self._base_url = base_url.rstrip("/").removesuffix("/v1")
        self._view = view
        self._display = display
        self._prompts: Iterator[ChatPrompt] = draw_prompts(plan.seed)

    async def run(self) -> DemoResult:
        """Measures, and writes output, errors and summary into `plan.out`.

        Raises:
            DemoError: the application is not ready in time, or serves no model.
            OpenAIError: it refused a file or a batch, or could not be reached.
            BatchFileError: its result files are not what the Batch API promises.
        """
        plan = self._plan
        async with (
            # No key is needed, and one from the environment is no business of this server.
            AsyncOpenAI(base_url=f"{self._base_url}/v1", api_key="none", timeout=CONTROL_TIMEOUT_S) as client,
            httpx.AsyncClient(base_url=self._base_url, timeout=STATUS_TIMEOUT_S) as http,
        ):
            await self._wait_until_ready(http)
            model = await self._find_model(client)
            load = ChatLoad(client, model, request_timeout_s=plan.request_timeout_s)
            status = StatusReader(http)
            self._view.title = f"ConServe: {model} at {self._base_url}"
            await self._warm_up(load)
            async with self._watch_status(status):
                alone = await self._chat_alone(load, status)
                harvesting, batch, results = await self._chat_while_harvesting(client, load, status, model)
        self._view.end()
        report = make_report(alone, harvesting, batch, model)
        problems = find_problems(alone, harvesting, batch)
        if batch.report.status == "completed":
            problems += find_id_problems(_expected_ids(plan), results.lines)
        write_report(plan.out / "summary.json", report)
        names = ["summary.json", results.output_file, results.error_file]
        files = [plan.out / name for name in names if name is not None]
        return DemoResult(report, self._choose_samples(results.lines), problems, files)

    async def _wait_until_ready(self, http: httpx.AsyncClient) -> None:
        deadline_s = time.monotonic() + self._plan.ready_timeout_s
        while True:
            try:
                response = await http.get("/health", timeout=5.0)
                if response.is_success:
                    return
                answer = f"HTTP {response.status_code}"
            except httpx.HTTPError as error:
                answer = f"{type(error).__name__}: {error}"
            if time.monotonic() > deadline_s:
                limit_s = self._plan.ready_timeout_s
                raise DemoError(f"{self._base_url}/health is not ready after {limit_s:g} s; its last answer: {answer}")
            await asyncio.sleep(min(0.5, self._plan.poll_s))

    async def _find_model(self, client: AsyncOpenAI) -> str:
        models = (await client.models.list()).data
        if not models:
            raise DemoError(f"{self._base_url}/v1/models names no model")
        return models[0].id

    async def _warm_up(self, load: ChatLoad) -> None:
        self._display.begin("Warming up, not measured")
        for _ in range(self._plan.warm_up_chats):
            record = await load.send(next(self._prompts))
            if record.error is not None:
                raise DemoError(f"the first chats failed: {record.error}")

    async def _chat_alone(self, load: ChatLoad, status: StatusReader) -> ChatPhase:
        self._display.begin(f"Chat alone, {self._plan.alone_s:g} s")
        before, started_s = await status.read(), time.monotonic()
        records = await load.run(
            arrivals.until(self._plan.alone_s, self._arrivals()), self._prompts, on_record=self._view.add_chat
        )
        return ChatPhase(started_s, records, measure_use(before, await status.read()))

    async def _chat_while_harvesting(
        self, client: AsyncOpenAI, load: ChatLoad, status: StatusReader, model: str
    ) -> tuple[ChatPhase, BatchPhase, _Results]:
        plan = self._plan
        self._display.begin(f"Chat, while a batch of {plan.requests} summaries is worked off")
        input_file = plan.out / "input.jsonl"
        write_batch_file(input_file, make_lines(plan.documents, plan.requests, model, plan.summary_tokens))
        uploaded = await client.files.create(file=input_file, purpose="batch")
        before, started_s = await status.read(), time.monotonic()
        batch = await client.batches.create(
            input_file_id=uploaded.id, endpoint=ENDPOINT, completion_window="24h", metadata={"source": "demonstration"}
        )
        stop = asyncio.Event()
        chats = asyncio.create_task(load.run(self._arrivals(), self._prompts, stop=stop, on_record=self._view.add_chat))
        try:
            batch = await self._watch_batch(client, batch, plan.batch_limit_s)
            ended_s = time.monotonic()
            stop.set()
            records: list[ChatRecord] = await chats
            use = measure_use(before, await status.read())
            if batch.status not in ENDED:
                self._display.announce(f"the batch has not ended within {plan.batch_limit_s:g} s: cancelling it")
                batch = await client.batches.cancel(batch.id)
                batch = await self._watch_batch(client, batch, plan.cancel_grace_s)
        finally:
            await _cancel_task(chats)
            if batch.status not in ENDED and batch.status != "cancelling":
                await _cancel_batch(client, batch)
        results = await self._fetch_results(client, batch)
        counts = _read_counts(batch, plan.requests)
        report = BatchReport(
            status=batch.status,
            total=counts.total,
            completed=counts.completed,
            failed=counts.failed,
            duration_s=ended_s - started_s,
            output_file=results.output_file,
            error_file=results.error_file,
        )
        refusals = [_describe_refusal(error) for error in (batch.errors.data or [] if batch.errors else [])]
        phase = BatchPhase(report, ended_s - started_s, count_tokens(results.lines), refusals)
        return ChatPhase(started_s, records, use), phase, results

    async def _watch_batch(self, client: AsyncOpenAI, batch: Batch, limit_s: float) -> Batch:
        """Returns the batch once it has ended, or as it is after `limit_s`."""
        deadline_s = time.monotonic() + limit_s
        while True:
            self._view.batch = _read_counts(batch, self._plan.requests)
            if batch.status in ENDED or time.monotonic() > deadline_s:
                return batch
            await asyncio.sleep(self._plan.poll_s)
            batch = await client.batches.retrieve(batch.id)

    async def _fetch_results(self, client: AsyncOpenAI, batch: Batch) -> _Results:
        lines: list[ResultLine] = []
        names: list[str | None] = []
        for file_id, name in ((batch.output_file_id, "output.jsonl"), (batch.error_file_id, "errors.jsonl")):
            if file_id:
                content = (await client.files.content(file_id)).content
                (self._plan.out / name).write_bytes(content)
                lines += read_result_lines(content)
            names.append(name if file_id else None)
        return _Results(lines, *names)

    @contextlib.asynccontextmanager
    async def _watch_status(self, status: StatusReader) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                self._view.status = await status.read()
                self._view.status_problem = status.problem
                await asyncio.sleep(self._plan.poll_s)

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            await _cancel_task(task)

    def _arrivals(self) -> Iterator[float]:
        # The same arrivals in both phases: as far as the shorter one goes, they differ in nothing but the batch.
        return arrivals.poisson(self._plan.chat_rate_per_s, self._plan.seed)

    def _choose_samples(self, results: Sequence[ResultLine]) -> list[Sample]:
        summaries = {result.custom_id: result.text for result in results if result.text and result.text.strip()}
        chosen: list[Sample] = []
        for index, custom_id in enumerate(_expected_ids(self._plan)):
            text = summaries.get(custom_id)
            if text is not None and len(chosen) < SAMPLES:
                chosen.append(Sample(self._plan.documents[index % len(self._plan.documents)].name, text.strip()))
        return chosen


def _expected_ids(plan: DemoPlan) -> list[str]:
    return [line["custom_id"] for line in make_lines(plan.documents, plan.requests, "", plan.summary_tokens)]


def _read_counts(batch: Batch, requests: int) -> BatchProgress:
    counts = batch.request_counts
    # A batch that is still being validated has no total yet.
    total = counts.total if counts is not None and counts.total else requests
    completed, failed = (counts.completed, counts.failed) if counts is not None else (0, 0)
    return BatchProgress(batch.status, total, completed, failed)


def _describe_refusal(error: BatchError) -> str:
    return f"{error.message} ({error.code}{f', line {error.line}' if error.line is not None else ''})"


async def _cancel_task(task: asyncio.Task[object]) -> None:
    """Ends the task; what it failed with, if it did, is raised."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def _cancel_batch(client: AsyncOpenAI, batch: Batch) -> None:
    """Leaves no work behind on a server that goes on running; it may just as well be gone already."""
    with contextlib.suppress(OpenAIError, TimeoutError):
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await client.batches.cancel(batch.id)
