"""What becomes of the configuration that Serve writes for HAProxy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.common import RequestProtocol
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions

from conserve.launch.haproxy_config import (
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    ProxyConfigError,
    harden,
    link_tls,
    read_tls,
)
from tests.certificates import make_certificates

COMMAND = [sys.executable, "-c", "from conserve.launch.haproxy_command import main; main()"]
HARDENED = "bind 127.0.0.1:9101", "bind 127.0.0.1:8404", "mode 600 level admin"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The configuration of a front for HTTP and gRPC, as Serve writes it."""
    path = tmp_path / "haproxy.cfg"
    options: dict[str, Any] = {"host": "127.0.0.1", "port": 8000}
    services = ["deployments.protos.conserve_pb2_grpc.add_BatchServiceServicer_to_server"]
    config = HAProxyConfig(
        http_options=HTTPOptions(**options),
        grpc_options=gRPCOptions(port=9000, grpc_servicer_functions=services),
        socket_path=str(tmp_path / "admin.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "state"),
        has_received_routes=True,
    )
    servers = [ServerConfig(name="a", host="127.0.0.1", port=30000)]
    backends = {
        f"{protocol.value}-conserve": BackendConfig(
            name=f"{protocol.value}-conserve", path_prefix="/", app_name="conserve", servers=servers, protocol=protocol
        )
        for protocol in (RequestProtocol.HTTP, RequestProtocol.GRPC)
    }
    HAProxyApi(cfg=config, backend_configs=backends, config_file_path=str(path))._generate_config_file_internal()
    return path


def run(config: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "-c", "-f", str(config)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environ}, check=False, timeout=60
    )


def test_what_serve_opens_to_everybody_is_closed(written: Path) -> None:
    before = written.read_text()
    after = harden(before, "127.0.0.1", None)
    assert [line for line in HARDENED if line in before] == []
    assert [line for line in HARDENED if line not in after] == []
    added = "    timeout http-request 30s"
    rest = after.splitlines()
    rest.remove(added)
    assert added not in before
    assert "timeout http-keep-alive" in before, "else the added line would be that, too"
    changed = [old for old, new in zip(before.splitlines(), rest, strict=True) if old != new]
    assert [line.split()[0] for line in changed] == ["stats", "bind", "bind"]
    assert "bind *:9101" in harden(before, "*", None)


def test_http_and_grpc_are_encrypted(written: Path, tmp_path: Path) -> None:
    after = harden(written.read_text(), "127.0.0.1", tmp_path / "tls.pem")
    both = f"ssl crt {tmp_path}/tls.pem ssl-min-ver TLSv1.2 alpn h2"
    assert f"bind 127.0.0.1:8000 {both},http/1.1\n" in after
    assert f"bind 127.0.0.1:9000 {both}\n" in after


def test_haproxy_takes_it_with_and_without_encryption(written: Path, tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    assert run(written).returncode == 0
    checked = run(written, **{CERTIFICATE_VARIABLE: str(files.certificate), KEY_VARIABLE: str(files.key)})
    assert checked.returncode == 0, checked.stderr
    links = {path.name: path.readlink() for path in tmp_path.iterdir() if path.is_symlink()}
    assert links == {"tls.pem": files.certificate, "tls.pem.key": files.key}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({CERTIFICATE_VARIABLE: "/none"}, f"{KEY_VARIABLE} is not set"),
        ({KEY_VARIABLE: "/none"}, f"{CERTIFICATE_VARIABLE} is not set"),
        ({CERTIFICATE_VARIABLE: "/none", KEY_VARIABLE: "/none"}, "/none cannot be read"),
    ],
)
def test_without_its_files_nothing_is_started_in_the_clear(written: Path, environ: dict[str, str], said: str) -> None:
    refused = run(written, **environ)
    assert (refused.returncode, said in refused.stderr) == (1, True), refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_key_of_another_certificate_is_refused(written: Path, tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    wrong = run(written, **{CERTIFICATE_VARIABLE: str(files.certificate), KEY_VARIABLE: str(files.client_key)})
    assert wrong.returncode == 1
    assert "inconsistencies between private key and certificate" in wrong.stderr


def test_another_version_s_configuration_is_not_guessed_at(written: Path) -> None:
    text = written.read_text()
    for line in ("bind :9101", "bind *:8404", "mode 666", "defaults\n"):
        with pytest.raises(ProxyConfigError, match="another version of Ray"):
            harden(text.replace(line, "x"), "127.0.0.1", None)
    with pytest.raises(ProxyConfigError, match="gRPC"):
        harden(text.replace("proto h2\n    mode", "\n    mode"), "127.0.0.1", Path("/x"))


def test_links_are_renewed(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    tls = read_tls({CERTIFICATE_VARIABLE: str(files.certificate), KEY_VARIABLE: str(files.key)})
    assert tls is not None
    assert link_tls(tls, tmp_path) == link_tls(tls, tmp_path)
    assert read_tls({}) is None
