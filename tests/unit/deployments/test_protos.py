"""The proto: its style, its stubs, and that the front has what it promises."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.ingress import ConServeIngress
from deployments.protos import conserve_pb2 as pb
from deployments.protos import conserve_pb2_grpc
from deployments.ray_compat import ChatCompletionRequest, CompletionRequest

ROOT = Path(__file__).parents[3]
PROTO = Path("deployments/protos/conserve.proto")
OWN_FIELDS = {"json_schema": "response_format"}
"""Fields of `Sampling` that requests of the HTTP API have by another name."""


def test_the_stubs_are_those_of_the_proto(tmp_path: Path) -> None:
    (tmp_path / PROTO).parent.mkdir(parents=True)
    shutil.copy(ROOT / PROTO, tmp_path / PROTO)
    outputs = ["--python_out=.", "--pyi_out=.", "--grpc_python_out=."]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", str(PROTO), *outputs], cwd=tmp_path, check=True, timeout=120
    )
    made = sorted((tmp_path / PROTO).parent.glob("*_pb2*"))
    assert len(made) == 3
    for stub in made:
        there = ROOT / PROTO.parent / stub.name
        assert there.read_bytes() == stub.read_bytes(), f"{there}: run `make setup`"


@pytest.mark.parametrize("command", [["lint"], ["format", "--diff", "--exit-code"]])
def test_buf_has_nothing_to_say(command: list[str]) -> None:
    buf = Path(sys.executable).with_name("buf")
    done = subprocess.run([buf, *command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_serve_finds_a_method_for_each_call() -> None:
    services = pb.DESCRIPTOR.services_by_name
    assert set(services) == {"GenerationService", "BatchService"}
    methods = [method for service in services.values() for method in service.methods]
    # Serve goes by the name alone.
    assert len({method.name for method in methods}) == len(methods)
    for method in methods:
        own = getattr(ConServeIngress, method.name)
        assert list(inspect.signature(own).parameters) == ["self", "request", "grpc_context"]
        assert inspect.isasyncgenfunction(own) == method.server_streaming
        assert inspect.iscoroutinefunction(own) != method.server_streaming
    for name in services:
        assert callable(getattr(conserve_pb2_grpc, f"add_{name}Servicer_to_server"))


def test_sampling_fields_are_those_of_the_http_api() -> None:
    names = {OWN_FIELDS.get(field.name, field.name) for field in pb.Sampling.DESCRIPTOR.fields}
    for kind in (ChatCompletionRequest, CompletionRequest):
        assert names <= set(kind.model_fields)


def test_both_ways_to_generate_take_the_same() -> None:
    whole, stream = (
        [(field.name, field.number, field.type) for field in kind.DESCRIPTOR.fields]
        for kind in (pb.GenerateRequest, pb.GenerateStreamRequest)
    )
    assert whole == stream
