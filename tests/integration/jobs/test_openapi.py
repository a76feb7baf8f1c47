"""The routes against their own OpenAPI description, by schemathesis: what is sent is generated from it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from conserve.config import Settings
from conserve.jobs import result_feed
from tests.integration.bench import URL, make_input
from tests.integration.jobs.served_routes import build_app, serve_routes

HOLDS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
"""What holds of every answer."""


@pytest.fixture(scope="module")
def base_url(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The routes on a free port, with a Redis and a storage of their own."""
    state_dir: Path = tmp_path_factory.mktemp("openapi")
    jobs = {"redis_url": server_url, "namespace": f"t{secrets.token_hex(6)}"}
    settings = Settings.model_validate({"jobs": jobs, "state_dir": state_dir})
    with pytest.MonkeyPatch.context() as patch, serve_routes(settings) as url:
        patch.setattr(result_feed, "LONGEST_FOLLOW_S", 0.01)  # Nobody works on the batches.
        yield url


@pytest.fixture(scope="module")
def known(base_url: str) -> dict[str, str]:
    """Ids of a file and of a batch that are there at first."""
    with httpx.Client(base_url=base_url) as client:
        files = {"file": ("in.jsonl", make_input(2))}
        file_id = client.post("/v1/files", data={"purpose": "batch"}, files=files).json()["id"]
        body = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}
        return {"file_id": file_id, "batch_id": client.post("/v1/batches", json=body).json()["id"]}


schema = schemathesis.openapi.from_dict(build_app().openapi())


def test_the_description_names_every_route() -> None:
    paths = schema.raw_schema["paths"]
    described = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert described == {
        "GET /v1/files",
        "POST /v1/files",
        "GET /v1/files/{file_id}",
        "DELETE /v1/files/{file_id}",
        "GET /v1/files/{file_id}/content",
        "GET /v1/batches",
        "POST /v1/batches",
        "GET /v1/batches/{batch_id}",
        "POST /v1/batches/{batch_id}",
        "POST /v1/batches/{batch_id}/cancel",
        "POST /v1/batches/{batch_id}/pause",
        "POST /v1/batches/{batch_id}/resume",
        "GET /v1/batches/{batch_id}/results",
    }


@schema.parametrize()
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_every_answer_is_as_described(case: Any, base_url: str, known: dict[str, str]) -> None:
    case.call_and_validate(base_url=base_url, checks=[*HOLDS, negative_data_rejection, unsupported_method])
    # What is generated names no object that there is.
    for name in case.path_parameters.keys() & known.keys():
        case.path_parameters[name] = known[name]
    if isinstance(case.body, dict) and "input_file_id" in case.body:
        case.body["input_file_id"] = known["file_id"]
    case.call_and_validate(base_url=base_url, checks=HOLDS)
