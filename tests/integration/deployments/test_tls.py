"""HTTP and gRPC as `conserve up` has them: encrypted by HAProxy, and on loopback whatever answers clients."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import httpx
import psutil
import pytest

from conserve.client import Client, UntrustedError
from conserve.launch.haproxy_config import Tls
from conserve.launch.health import ask_health
from conserve.launch.processes import STACK_ID_VARIABLE, find_processes
from conserve.launch.serve_proxy import find_grpc_environment, make_proxy_environment, remove_proxy_dir
from deployments.protos import conserve_pb2 as pb
from deployments.protos import conserve_pb2_grpc as stubs
from tests.certificates import Certificates, make_certificates
from tests.integration.deployments.conftest import WAIT_S, Front, read_events, running_front
from tests.integration.deployments.light_application import MODEL

# The application starts within the first test; on a busy machine that takes minutes.
pytestmark = pytest.mark.timeout(600)

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True}
STACK = uuid.uuid4().hex


@dataclass(frozen=True)
class Encrypted:
    """A front behind HAProxy, and what it is encrypted with."""

    front: Front
    files: Certificates
    environ: dict[str, str]


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    folder = tmp_path_factory.mktemp("tls")
    files = make_certificates(folder)
    environ = make_proxy_environment(folder) | Tls(files.certificate, files.key).to_environment()
    environ |= find_grpc_environment("127.0.0.1") | {STACK_ID_VARIABLE: STACK}
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            with running_front(1, {}) as front:
                encrypted = replace_scheme(front)
                encrypted.wait_until(lambda: is_healthy(encrypted, files), "HAProxy does not answer")
                yield Encrypted(encrypted, files, environ)
    finally:
        remove_proxy_dir(folder)


def replace_scheme(front: Front) -> Front:
    return replace(front, url=front.url.replace("http:", "https:"))


def is_healthy(front: Front, files: Certificates) -> bool:
    try:
        return ask_health(front.url, files.certificate).is_success
    except httpx.TransportError:
        return False


def test_an_answer_is_streamed_over_https(encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(encrypted.files.authority))
    answer = httpx.post(f"{encrypted.front.url}/v1/chat/completions", json=CHAT, timeout=WAIT_S)
    assert len(read_events(answer)) > 1


def test_our_client_and_command_take_an_authority_from_the_environment(encrypted: Encrypted) -> None:
    with Client(encrypted.front.url) as client, pytest.raises(UntrustedError, match="SSL_CERT_FILE"):
        client.status()
    command = [
        *(sys.executable, "-c", "from conserve.cli.program import main; main()"),
        *("chat", "--url", encrypted.front.url, "--model", MODEL, "hi"),
    ]
    for authority, code, said in ((None, 1, "SSL_CERT_FILE"), (encrypted.files.authority, 0, " done")):
        environ = os.environ | ({} if authority is None else {"SSL_CERT_FILE": str(authority)})
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr


def test_grpc_is_encrypted(encrypted: Encrypted) -> None:
    credentials = grpc.ssl_channel_credentials(encrypted.files.authority.read_bytes())
    request = pb.GenerateStreamRequest(model=MODEL, chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")]))
    with grpc.secure_channel(encrypted.front.grpc_address, credentials) as channel:
        pieces = list(stubs.GenerationServiceStub(channel).GenerateStream(request, timeout=WAIT_S))
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_plain_text_is_not_answered(encrypted: Encrypted) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{encrypted.front.url.replace('https:', 'http:')}/health", timeout=WAIT_S)
    with grpc.insecure_channel(encrypted.front.grpc_address) as channel, pytest.raises(grpc.RpcError):
        stubs.GenerationServiceStub(channel).Generate(pb.GenerateRequest(model=MODEL), timeout=30)


@pytest.mark.parametrize(("version", "spoken"), [("TLSv1_1", None), ("TLSv1_2", "TLSv1.2"), ("TLSv1_3", "TLSv1.3")])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_old_versions_are_not_answered(encrypted: Encrypted, version: str, spoken: str | None) -> None:
    context = ssl.create_default_context(cafile=str(encrypted.files.authority))
    context.set_ciphers("ALL:@SECLEVEL=0")  # So that it is the server who refuses.
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    for address in (encrypted.front.url.removeprefix("https://"), encrypted.front.grpc_address):
        assert find_version(context, address) == spoken


def find_version(context: ssl.SSLContext, address: str) -> str | None:
    """What is spoken at an address; None where no agreement is found."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=host) as wrapped:
                return wrapped.version()
        except ssl.SSLError:
            return None


def test_nothing_that_serves_clients_listens_beyond_loopback(encrypted: Encrypted) -> None:
    ports = {
        name.removeprefix("RAY_SERVE_"): int(value) for name, value in encrypted.environ.items() if "_PORT" in name
    }
    fronts = range(ports["DIRECT_INGRESS_MIN_HTTP_PORT"], ports["DIRECT_INGRESS_MAX_GRPC_PORT"] + 1)
    others = {port for name, port in ports.items() if "DIRECT_INGRESS" not in name}
    found = [address for _, address in find_listeners() if address.port in fronts or address.port in others]
    assert {address.ip for address in found} <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert {address.port for address in found} >= others
    assert {address.port >= ports["DIRECT_INGRESS_MIN_GRPC_PORT"] for address in found if address.port in fronts} == {
        True,
        False,
    }
    beyond = {process.name() for process, address in find_listeners() if address.ip != "127.0.0.1"}
    assert "haproxy" not in beyond


def test_who_has_no_token_has_nothing_unpickled(encrypted: Encrypted) -> None:
    beyond = {
        address.port
        for process, address in find_listeners()
        if address.ip != "127.0.0.1" and "ServeReplica" in " ".join(process.cmdline())
    }
    assert beyond
    answers = []
    for port in beyond:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=30)
            answers.append((refused.value.code(), refused.value.details()))
    # Ray's own servers do not have that method.
    codes = {code for code, _ in answers}
    assert grpc.StatusCode.UNAUTHENTICATED in codes, answers
    assert codes <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}, answers


def test_what_clients_send_is_in_no_log(encrypted: Encrypted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(encrypted.files.authority))
    texts = {name: f"{name}-{uuid.uuid4().hex}" for name in ("prompt", "key", "field", "path")}
    url = f"{encrypted.front.url}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {texts['key']}"}
    messages = [{"role": "user", "content": texts["prompt"]}]
    for body in (
        {"model": MODEL, "messages": messages, "stream": True},
        {"model": MODEL, "messages": messages, "n": texts["field"]},
        {"model": texts["field"], "messages": messages},
    ):
        httpx.post(url, json=body, headers=headers, timeout=WAIT_S)
    httpx.post(url, content=f'{{"messages": "{texts["prompt"]}', headers=headers, timeout=WAIT_S)
    logs = encrypted.front.folder / "ray" / "session_latest" / "logs"
    read = {str(path): path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file()}
    read["application.log"] = (encrypted.front.folder / "application.log").read_text(errors="replace")
    assert [path for path, text in read.items() if "POST /v1/chat/completions" in text]
    assert [(path, name) for path, text in read.items() for name, marker in texts.items() if marker in text] == []


def find_listeners() -> Iterator[tuple[psutil.Process, Any]]:
    """The processes of the application, with the addresses that they listen at."""
    for process in find_processes(STACK):
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:  # Ended meanwhile.
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                yield process, connection.laddr
