"""Ray Data with batches as a stage, a source and a sink, over the real routes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conserve.config import Settings
from conserve.jobs import embedded
from deployments.datasets import RESULT_SCHEMA
from tests.integration.deployments import dataset_program
from tests.integration.deployments.conftest import ROOT, WAIT_S
from tests.integration.worked_routes import serve_with_models, work


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Of one server: Ray takes long to start, and which server it is makes no difference here."""
    yield Settings.model_validate({"state_dir": tmp_path})
    embedded.stop(tmp_path)


def test_pipelines(settings: Settings) -> None:
    with work(settings) as worker, serve_with_models(settings) as url:
        worker.engine.refusals |= {"say 3", "say 12"}
        command = [sys.executable, "-m", dataset_program.__name__, url]
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=WAIT_S
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    assert [row["number"] for row in found["stage"]] == list(range(20))
    for row in found["stage"]:
        is_refused = row["number"] in (3, 12)
        assert row["answer"] == (None if is_refused else row["text"])
        assert row["answer_error"] == ("too long (HTTP 400)" if is_refused else None)

    assert 1 <= found["batches"] <= 2
    assert found["schema"] == RESULT_SCHEMA.names
    assert [row["custom_id"] for row in found["results"]] == [f"row-{number}" for number in range(7)]
    texts = [row["text"] for row in found["results"]]
    assert texts == ["say 0", "say 1", "say 2", None, "say 4", "say 5", "say 6"]
    assert found["results"][3]["error"] == "too long (HTTP 400)"
    assert json.loads(found["results"][0]["body"])["usage"]["total_tokens"] == 10
    assert (found["results"][0]["prompt_tokens"], found["results"][0]["completion_tokens"]) == (7, 3)

    assert "No batch found" in found["refused"]
    assert found["no column"] == "prompt: there is no column 'no'; there are: text"
    assert 'batch_format="pyarrow"' in found["no table"]

    stage, sink = found["examples"]
    assert stage.splitlines() == [
        "A fine film. Is this praise? Yes or no. A fine film.",
        "Too long by half. Is this praise? Yes or no. Too long by half.",
    ]
    assert sink.count("Count to ") == 3
