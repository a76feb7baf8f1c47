"""`python -m loadtests.upload_cost --base-url ...`: a large input file over HTTP, to a deployment that runs.

How long the upload takes, how long from the creation of the batch until its requests can be claimed, and how much
memory the processes of the deployment on this machine take meanwhile: the file must never be held whole. In the end the
batch is cancelled and the file deleted.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, Any, Final

import httpx
import psutil
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from conserve.jobs.batch import Batch, BatchStatus
from loadtests.queue_cost import ENDPOINT, LIMITS, LINE_BYTES, MB, SAMPLE_S, make_input
from loadtests.report import describe_machine

NAMES: Final = ("HTTP proxy", "ingress", "controller", "replica", "Redis")
MARKS: Final = (
    "Proxy",
    "ServeReplica:conserve:Ingress",
    "ServeReplica:conserve:Controller",
    "ConServeReplica",
    "valkey",
)
"""What stands in the command lines of those processes."""
WINDOW: Final = "30d"
LIMIT_S: Final = 300.0
POLL_S: Final = 0.05


class UploadReport(BaseModel):
    """What is written to `upload.json`.

    Attributes:
        lines, file_mb: Of the input file.
        upload_s: Seconds of the upload.
        enqueue_s: From the creation of the batch until its requests can be claimed.
        rss_growth_mb: By process of the deployment, as far as they run on this machine: most memory above that before.
    """

    lines: int
    file_mb: float
    upload_s: float
    enqueue_s: float
    rss_growth_mb: dict[str, float]

    @property
    def most_mb(self) -> float:
        """Of the process whose memory has grown most; 0 where none was found."""
        return max(self.rss_growth_mb.values(), default=0.0)


class RssWatch:
    """The most memory of each process of the deployment while the block runs, above what it had before, in MB."""

    def __init__(self) -> None:
        self._processes = _find_processes()
        self._before = {process: _read_rss(process) for process in self._processes}
        self._most = dict(self._before)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> RssWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            for process in self._processes:
                self._most[process] = max(self._most[process], _read_rss(process))

    @property
    def growth_mb(self) -> dict[str, float]:
        """By name."""
        growth: dict[str, float] = {}
        for process, name in self._processes.items():
            growth[name] = max(growth.get(name, 0.0), (self._most[process] - self._before[process]) / MB)
        return growth


def _find_processes() -> dict[psutil.Process, str]:
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            names = (name for name, mark in zip(NAMES, MARKS, strict=True) if mark in command)
            if (name := next(names, None)) is not None:
                found[process] = name
    return found


def _read_rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


async def write_input(file: IO[bytes], model: str, lines: int, line_bytes: int) -> None:
    """Writes an input file for a model."""
    async for line in make_input(lines, line_bytes, model):
        file.write(line)
    file.flush()
    file.seek(0)


def measure(http: httpx.Client, file: IO[bytes], lines: int, file_bytes: int) -> UploadReport:
    """Uploads a file, lets it be validated, and takes it back.

    Raises:
        RuntimeError: It was not accepted; with the answer.
    """
    with RssWatch() as watch:
        began_s = time.perf_counter()
        uploaded = _answer(http.post("/v1/files", files={"file": ("input.jsonl", file)}, data={"purpose": "batch"}))
        uploaded_s = time.perf_counter()
        body = {"input_file_id": uploaded["id"], "endpoint": ENDPOINT, "completion_window": WINDOW}
        batch = Batch.model_validate(_answer(http.post("/v1/batches", json=body)))
        try:
            batch = _wait_until_queued(http, batch.id)
            queued_s = time.perf_counter()
            if batch.request_counts.total != lines:
                raise RuntimeError(
                    f"the batch is {batch.status} with {batch.request_counts.total} requests: {batch.errors}"
                )
        finally:
            _take_back(http, batch.id, uploaded["id"])
    return UploadReport(
        lines=lines,
        file_mb=file_bytes / MB,
        upload_s=uploaded_s - began_s,
        enqueue_s=queued_s - uploaded_s,
        rss_growth_mb=watch.growth_mb,
    )


def _wait_until_queued(http: httpx.Client, batch_id: str) -> Batch:
    until_s = time.monotonic() + LIMIT_S
    while True:
        batch = Batch.model_validate(_answer(http.get(f"/v1/batches/{batch_id}")))
        if batch.status is not BatchStatus.VALIDATING:
            return batch
        if time.monotonic() > until_s:
            raise RuntimeError(f"the batch is still being validated after {LIMIT_S:g} s")
        time.sleep(POLL_S)


def _take_back(http: httpx.Client, batch_id: str, file_id: str) -> None:
    http.post(f"/v1/batches/{batch_id}/cancel")
    until_s = time.monotonic() + LIMIT_S
    # Until then the file is in use.
    while (
        time.monotonic() < until_s
        and not Batch.model_validate(_answer(http.get(f"/v1/batches/{batch_id}"))).status.ended
    ):
        time.sleep(POLL_S)
    http.delete(f"/v1/files/{file_id}")


def _answer(response: httpx.Response) -> Any:
    if response.is_error:
        raise RuntimeError(f"{response.request.method} {response.request.url}: {response.status_code} {response.text}")
    return response.json()


def main(
    base_url: Annotated[str, typer.Option(help="Of the deployment.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="By default the first one that it serves.")] = None,
    lines: Annotated[int, typer.Option(min=1, help="Lines of the input file.")] = 50_000,
    line_bytes: Annotated[int, typer.Option(min=200, help="Length of a line.")] = LINE_BYTES,
    api_key: Annotated[str, typer.Option(help="Of a tenant, where there are any.")] = "none",
    out: Annotated[Path | None, typer.Option(help="Folder for upload.json.")] = None,
) -> None:
    """Prints what was measured, and writes `upload.json`."""
    console = Console(highlight=False)
    headers = {"Authorization": f"Bearer {api_key}"}
    try:
        with (
            httpx.Client(base_url=base_url, headers=headers, timeout=LIMIT_S) as http,
            tempfile.TemporaryFile() as file,
        ):
            name = model or str(_answer(http.get("/v1/models"))["data"][0]["id"])
            asyncio.run(write_input(file, name, lines, line_bytes))
            report = measure(http, file, lines, lines * line_bytes)
    except (httpx.HTTPError, RuntimeError) as error:
        console.print(f"Not measured: {error}")
        raise typer.Exit(1) from None
    console.print(render(report))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {"machine": describe_machine(), **report.model_dump()}
        (out / "upload.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def render(report: UploadReport) -> Table:
    """The table that is printed."""
    table = Table(title=f"{report.lines:,} lines, {report.file_mb:,.0f} MB, over HTTP", title_justify="left")
    for name in ("", "measured", "must", "goal", ""):
        table.add_column(name, justify="right" if name else "left")
    enqueue, growth = LIMITS["enqueue_s"], LIMITS["rss_growth_mb"]
    verdict = enqueue.judge(report.enqueue_s)
    table.add_row("upload", f"{report.upload_s:.1f} s", "", "", "")
    table.add_row(
        "validated and queued", f"{report.enqueue_s:.1f} s", f"{enqueue.must:g} s", f"{enqueue.goal:g} s", verdict
    )
    for name, grown in report.rss_growth_mb.items():
        must, verdict = f"{growth.must:g} MB", growth.judge(grown)
        table.add_row(f"growth of the {name}", f"{grown:.0f} MB", must, f"{growth.goal:g} MB", verdict)
    return table


if __name__ == "__main__":
    typer.run(main)
