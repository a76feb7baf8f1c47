"""The results of a benchmark on disk, kept as they come, so that one that was broken off can be reported."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from loadtests.coserving.results import RunResult, WorkloadResults

_RUN = TypeAdapter(RunResult)
_WORKLOAD = TypeAdapter(WorkloadResults)
_HEADER = "workload.json"
_Value = TypeVar("_Value")


class KeptResultError(ValueError):
    """A kept result cannot be read; the message names the file and what is wrong."""


def keep_workload(folder: Path, results: WorkloadResults) -> None:
    """Writes everything but the runs into `folder`; the runs are kept one by one, see `keep_run`."""
    _write(folder / _HEADER, _WORKLOAD.dump_json(replace(results, runs=()), indent=2))


def keep_run(folder: Path, result: RunResult, order: int) -> None:
    """Writes one run into `folder`; `order` is its place among the runs."""
    _write(folder / f"{order:03d}-{result.run}-{result.repeat}.json", _RUN.dump_json(result))


def clear_kept(folder: Path) -> None:
    """Removes what an earlier benchmark kept in `folder`, which would pass for this one's."""
    for path in folder.glob("*.json") if folder.is_dir() else ():
        path.unlink()


def is_kept(folder: Path) -> bool:
    """Whether `folder` holds a workload."""
    return (folder / _HEADER).is_file()


def read_kept(folder: Path) -> WorkloadResults:
    """Reads a workload with all the runs that were kept, however the benchmark ended.

    Raises:
        KeptResultError: `folder` holds none, or a file that is none.
    """
    results = _read(folder / _HEADER, _WORKLOAD)
    paths = sorted(path for path in folder.glob("*.json") if path.name != _HEADER)
    return replace(results, runs=tuple(_read(path, _RUN) for path in paths))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _read(path: Path, adapter: TypeAdapter[_Value]) -> _Value:
    try:
        return adapter.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise KeptResultError(f"{path}: there is no such file") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "file"
        raise KeptResultError(f"{path}: {where}: {problem['msg']}") from error
