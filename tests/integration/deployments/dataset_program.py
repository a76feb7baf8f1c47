"""A pipeline of Ray Data over an application: `python -m ... URL`. Says what came of it as one line of JSON.

In a process of its own, as Ray leaves what it has loaded in the one that it is started in.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from conserve.client import NotFoundError
from deployments.datasets import BatchDatasink, HarvestedRequests, read_batch_results

PAGE = Path(__file__).parents[3] / "docs" / "ray-data.md"


def run_pipelines(url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rows = ray.data.from_items([{"number": number, "text": f"say {number}"} for number in range(20)])
    answered = rows.map_batches(
        HarvestedRequests,
        fn_constructor_args=["text"],
        fn_constructor_kwargs={"base_url": url, "body": {"max_tokens": 8}, "window": "1h"},
        batch_format="pyarrow",
        batch_size=8,
        num_cpus=0,
        concurrency=2,
    )
    found["stage"] = sorted(answered.take_all(), key=lambda row: row["number"])

    sink = BatchDatasink(lambda row: {"custom_id": f"row-{row['number']}", "body": make_body(row)}, base_url=url)
    rows.filter(lambda row: row["number"] < 7).repartition(2).write_datasink(sink)
    found["batches"] = len(sink.batch_ids)
    results = read_batch_results(sink.batch_ids[0], url)
    for batch_id in sink.batch_ids[1:]:
        results = results.union(read_batch_results(batch_id, url))
    found["schema"] = results.schema().names
    found["results"] = sorted(results.take_all(), key=lambda row: row["custom_id"])

    try:
        read_batch_results("batch_0123456789abcdef", url)
    except NotFoundError as error:
        found["refused"] = str(error)
    try:
        HarvestedRequests("no", base_url=url)(pa.table({"text": ["a"]}))
    except ValueError as error:
        found["no column"] = str(error)
    try:
        HarvestedRequests("text", base_url=url)({"text": ["a"]})
    except TypeError as error:
        found["no table"] = str(error)
    return found


def run_examples(url: str) -> list[str]:
    """What each example of docs/ray-data.md prints, run as it stands."""
    said = []
    for number, example in enumerate(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(example.replace("http://127.0.0.1:8000", url), f"{PAGE.name}[{number}]", "exec"), {})
        said.append(output.getvalue())
    return said


def make_body(row: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": row["text"]}]}


def main() -> None:
    folder = tempfile.mkdtemp(prefix="rd-", dir="/tmp")
    try:
        ray.init(
            num_cpus=2, include_dashboard=False, _temp_dir=folder, object_store_memory=100 << 20, log_to_driver=False
        )
        ray.data.DataContext.get_current().enable_progress_bars = False
        found = run_pipelines(sys.argv[1]) | {"examples": run_examples(sys.argv[1])}
        print(json.dumps(found))
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
