"""Batches as a stage, a source and a sink of Ray Data, so that a pipeline's LLM stage runs on harvested capacity.

A pipeline needs no GPU for it and no replica of its own: its tasks submit batches to an application over HTTP and wait,
so give them `num_cpus=0`. Ray runs a task that it has lost again, and with it its batch: results are never doubled,
but what the first one computed is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import pyarrow as pa
import ray.data
from ray.data import Dataset, Datasource, ReadTask
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import Datasink, WriteResult

from conserve.client import Client, Result
from conserve.client.requests import Request

ROWS_AT_ONCE: Final = 1_000
RESULT_SCHEMA: Final = pa.schema(
    [
        ("custom_id", pa.string()),
        ("text", pa.string()),
        ("error", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("body", pa.string()),
    ]
)
"""Of `read_batch_results`. Of `text` and `error` one is null, unless an answer has no text; `body` is JSON."""

MakeRequest = Callable[[dict[str, Any]], Request]
"""Makes a request of a row: a prompt, a body, or a whole line of a batch (see `AsyncClient.submit`)."""


def read_batch_results(batch_id: str, base_url: str | None = None, api_key: str | None = None) -> Dataset:
    """A dataset of the results of a batch, in the order in which they are done (`RESULT_SCHEMA`).

    The batch may still run: its results come as they do, and the dataset ends with it.

    Args:
        batch_id: Of the batch.
        base_url: Of the application; by default what `CONSERVE_URL` says here, or this machine.
        api_key: As of `AsyncClient`.

    Raises:
        ConServeError: there is no such batch, or nothing answers.
    """
    with Client(base_url, api_key) as client:
        client.get(batch_id)
    return ray.data.read_datasource(_BatchResults(batch_id, base_url, api_key))


class HarvestedRequests:
    """A stage for `Dataset.map_batches`: asks about each row, and adds what was answered.

    Each block of rows is one batch, whose requests are done whenever there is room beside online ones. Give
    `map_batches` this class with `batch_format="pyarrow"`, `num_cpus=0`, as `batch_size` how many requests are a batch,
    and as `concurrency` how many batches are under way.

    Args:
        prompt: The column with prompts, or what makes a request of a row.
        output: The column that is added with answers; null where there is none.
        error: The column that is added with reasons why there is none; null where there is one.
        base_url: Of the application, as of `AsyncClient`.
        api_key: As of `AsyncClient`.
        model: By default the first one that is served.
        body: Fields of every request, such as `{"max_tokens": 64}`.
        window: Time to complete each batch in.
        priority: Of the batches.
    """

    def __init__(
        self,
        prompt: str | MakeRequest,
        output: str = "answer",
        error: str = "answer_error",
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        model: str | None = None,
        body: Mapping[str, Any] | None = None,
        window: str = "24h",
        priority: int = 0,
    ) -> None:
        self._prompt = prompt
        self._output, self._error = output, error
        self._client = Client(base_url, api_key)
        self._options: dict[str, Any] = {"model": model, "body": body, "window": window, "priority": priority}

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows with two more columns.

        Raises:
            TypeError: the rows are no table of pyarrow.
            ConServeError: the batch is refused or fails.
        """
        if not isinstance(rows, pa.Table):
            raise TypeError(f'map_batches needs batch_format="pyarrow" for this stage (it gave {type(rows).__name__})')
        answers = list(self._client.map(_make_requests(rows, self._prompt), **self._options))
        rows = rows.append_column(self._output, pa.array([_find_text(one) for one in answers], pa.string()))
        return rows.append_column(self._error, pa.array([one.reason for one in answers], pa.string()))


class BatchDatasink(Datasink):
    """A sink for `Dataset.write_datasink`: submits the rows as batches, and does not wait for them.

    Afterwards `batch_ids` has the ids, one for each of Ray's write tasks; `read_batch_results` reads what comes of
    them. The arguments are those of `HarvestedRequests`.
    """

    def __init__(
        self,
        prompt: str | MakeRequest,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        model: str | None = None,
        body: Mapping[str, Any] | None = None,
        window: str = "24h",
        priority: int = 0,
    ) -> None:
        super().__init__()
        self._prompt = prompt
        self._address = (base_url, api_key)
        self._options: dict[str, Any] = {"model": model, "body": body, "window": window, "priority": priority}
        self.batch_ids: list[str] = []

    def write(self, blocks: Iterable[Block], ctx: Any) -> list[str]:
        """Submits the blocks of one write task; returns the ids of their batches, one or none.

        Raises:
            ConServeError: the batch is refused.
        """
        requests = [
            request
            for block in blocks
            for request in _make_requests(BlockAccessor.for_block(block).to_arrow(), self._prompt)
        ]
        if not requests:
            return []
        with Client(*self._address) as client:
            return [client.submit(requests, **self._options).id]

    def on_write_complete(self, write_result: WriteResult) -> None:
        """Called by Ray where `write_datasink` was."""
        self.batch_ids = [batch_id for ids in write_result.write_returns for batch_id in ids]


class _BatchResults(Datasource):
    """The results of one batch: one task reads them, since they are one stream."""

    def __init__(self, batch_id: str, base_url: str | None, api_key: str | None) -> None:
        super().__init__()
        self._batch_id = batch_id
        self._address = (base_url, api_key)

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One, however many are wanted."""
        batch_id, address = self._batch_id, self._address

        def read() -> Iterator[pa.Table]:
            with Client(*address) as client:
                results = client.get(batch_id).as_completed()
                while rows := [_make_row(result) for result in islice(results, ROWS_AT_ONCE)]:
                    yield pa.Table.from_pylist(rows, RESULT_SCHEMA)

        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(read, metadata, RESULT_SCHEMA, per_task_row_limit)]


def _make_requests(rows: pa.Table, prompt: str | MakeRequest) -> list[Request]:
    if callable(prompt):
        return [prompt(row) for row in rows.to_pylist()]
    if prompt not in rows.column_names:
        raise ValueError(f"prompt: there is no column {prompt!r}; there are: {', '.join(rows.column_names)}")
    return [str(value) for value in rows.column(prompt).to_pylist()]


def _make_row(result: Result) -> dict[str, Any]:
    return {
        "custom_id": result.custom_id,
        "text": _find_text(result),
        "error": result.reason,
        "prompt_tokens": result.usage.prompt_tokens,
        "completion_tokens": result.usage.completion_tokens,
        "body": json.dumps(result.body) if result.ok else None,
    }


def _find_text(result: Result) -> str | None:
    """None where there is no answer, or none that is a text."""
    return result.text if result.ok and "choices" in result.body else None
