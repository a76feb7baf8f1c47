"""Where the password of Redis goes when a stack comes up, and where not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from conserve.cli.main import app
from conserve.launch import stack as stack_module
from conserve.launch.haproxy_config import CERTIFICATE_VARIABLE, KEY_VARIABLE
from conserve.launch.private_file import make_private_folder, write_private
from conserve.launch.record import StackError, read_record, record_path
from conserve.launch.teardown import CREDENTIAL_FILE
from tests.certificates import make_certificates
from tests.unit.launch.conftest import World

SECRET = "s3cr3t%2Fw0rd"
DECODED = "s3cr3t/w0rd"
URL = f"redis://conserve:{SECRET}@redis.example.org:6379/0"


def read_all(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}


def has_secret(text: str) -> bool:
    return SECRET in text or DECODED in text


def test_the_password_of_redis_is_in_a_file_of_its_own_only(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    stack = world.stack(CONSERVE_JOBS__REDIS_URL=URL)
    with structlog.testing.capture_logs() as logs:
        stack.up(said.append)
    args = json.loads(world.serve.received)["applications"][0]["args"]
    assert args["jobs"]["redis_url"] == "redis://conserve@redis.example.org:6379/0"
    path = Path(args["jobs"]["redis_password_file"])
    assert (path.read_text(), path.stat().st_mode & 0o777) == (f"{DECODED}\n", 0o600)
    assert path == world.state / CREDENTIAL_FILE
    holders = [name for name, text in read_all(world.state).items() if has_secret(text)]
    assert holders == [CREDENTIAL_FILE]
    assert not has_secret(f"{world.serve.received} {said} {logs} {capfd.readouterr()}")
    assert not has_secret(str(world.head_environ))
    assert {path.stat().st_mode & 0o077 for path in world.state.iterdir() if path.suffix != ".lock"} == {0}
    assert stack.down()
    assert not path.exists()


def test_another_s_cluster_is_not_told_the_password(world: World) -> None:
    said: list[str] = []
    world.stack(world.serve.url, CONSERVE_JOBS__REDIS_URL=URL).up(said.append)
    assert not has_secret(f"{world.serve.received} {read_all(world.state)} {said}")
    assert [line for line in said if "jobs.redis_password_file" in line]


def test_a_checked_configuration_is_shown_without_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conserve.cli.main.configure_program_logs", lambda: None)
    monkeypatch.setenv("CONSERVE_JOBS__REDIS_URL", URL)
    for options in ([], ["--json"]):
        result = CliRunner().invoke(app, ["config", "check", "-f", str(world.config), *options])
        assert result.exit_code == 0, result.output
        assert not has_secret(result.output)
    monkeypatch.setenv("CONSERVE_JOBS__REDIS_URL", URL.replace("redis.example.org:6379", "127.0.0.1:1"))
    result = CliRunner().invoke(app, ["doctor", "-f", str(world.config)])
    assert "Redis: 127.0.0.1:1 does not answer" in result.output
    assert not has_secret(result.output)


def test_a_broken_configuration_is_not_quoted(world: World) -> None:
    world.config.write_text(f"applications: [\n  tenants: {{a: {{api_keys: [{SECRET}]}}}}\n  }}")
    result = CliRunner().invoke(app, ["config", "check", "-f", str(world.config)])
    assert result.exit_code == 2
    assert "line 3" in result.output
    assert not has_secret(result.output)


@pytest.mark.parametrize("content", ["", "{", '{"stack_id": 5}', "\udcff"])
def test_a_damaged_record_is_said_and_not_taken_for_none(world: World, content: str) -> None:
    record_path(world.state).write_bytes(content.encode(errors="surrogateescape"))
    for call in (world.stack().up, world.stack().down):
        with pytest.raises(StackError, match=r"stack\.json is damaged.*`ps`.*delete the file"):
            call()
    assert (world.head_environ, world.redis_runs, world.serve.calls) == ({}, False, [])


def test_records_of_older_and_newer_versions(world: World) -> None:
    old = {"stack_id": "a" * 32, "application": "conserve", "base_url": "http://b"}
    record_path(world.state).write_text(json.dumps(old))
    read = read_record(world.state)
    assert read is not None
    assert (read.version, read.tls_certificate) == (1, None)
    record_path(world.state).write_text(json.dumps({**old, "of_a_later_minor": 1}))
    assert read_record(world.state) == read
    record_path(world.state).write_text(json.dumps({**old, "version": 2}))
    with pytest.raises(StackError, match="newer version"):
        world.stack().up()


# Encryption.


def encrypt(world: World, folder: Path, name: str = "127.0.0.1") -> dict[str, str]:
    files = make_certificates(folder, name)
    return {CERTIFICATE_VARIABLE: str(files.certificate), KEY_VARIABLE: str(files.key)}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path | None]]:
    asked: list[tuple[str, Path | None]] = []

    def ask(base_url: str, certificate: Path | None) -> Any:
        asked.append((base_url, certificate))
        return type("Answer", (), {"status_code": 200})

    monkeypatch.setattr(stack_module, "ask_health", ask)
    return asked


def test_the_certificate_of_serve_s_options_is_haproxy_s(
    world: World, tmp_path: Path, asked: list[tuple[str, Path | None]]
) -> None:
    environ = encrypt(world, tmp_path)
    options = {"ssl_certfile": environ[CERTIFICATE_VARIABLE], "ssl_keyfile": environ[KEY_VARIABLE]}
    world.configure(http_options=options)
    running = world.stack().up()
    assert running.base_url.startswith("https://")
    assert {name: world.head_environ[name] for name in environ} == environ
    assert "ssl_" not in world.serve.received
    assert asked == [(running.base_url, Path(environ[CERTIFICATE_VARIABLE]))]
    world.configure()
    with pytest.raises(StackError, match="take it down first"):
        world.stack().up()
    world.configure(http_options=options)
    assert world.stack().up() == running
    world.stack().down()
    world.serve.applications = {}
    with pytest.raises(StackError, match="for a Ray of our own"):
        world.stack(world.serve.url).up()


def test_serve_s_own_proxy_keeps_its_options_and_has_no_grpc(
    world: World, tmp_path: Path, asked: list[tuple[str, Path | None]]
) -> None:
    environ = encrypt(world, tmp_path)
    options = {"ssl_certfile": environ[CERTIFICATE_VARIABLE], "ssl_keyfile": environ[KEY_VARIABLE]}
    world.configure(http_options=options)
    world.stack(RAY_SERVE_ENABLE_HA_PROXY="0").up()
    assert json.loads(world.serve.received)["http_options"].items() >= options.items()
    world.stack(RAY_SERVE_ENABLE_HA_PROXY="0").down()
    world.configure(http_options=options, grpc_options={"grpc_servicer_functions": ["m.f"]})
    with pytest.raises(StackError, match="gRPC is not encrypted"):
        world.stack(RAY_SERVE_ENABLE_HA_PROXY="0").up()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ssl_certfile": "/none"}, "needs both"),
        ({"ssl_certfile": "/none", "ssl_keyfile": "/none"}, "/none cannot be read"),
        ({"ssl_certfile": "/x", "ssl_keyfile": "/x", "ssl_keyfile_password": SECRET}, "without a password"),
        ({"ssl_ca_certs": "/x"}, "a proxy of your own"),
    ],
)
def test_wrong_options_of_encryption(world: World, options: dict[str, str], said: str) -> None:
    world.configure(http_options=options)
    result = CliRunner().invoke(app, ["config", "check", "-f", str(world.config)])
    assert (result.exit_code, said in " ".join(result.output.split())) == (2, True), result.output
    assert not has_secret(result.output)


# Files.


def test_a_file_that_others_could_read_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_somebody_else_has_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_private_folder(tmp_path / "own")
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "own")
    with pytest.raises(PermissionError, match="remove it"):
        make_private_folder(tmp_path / "link")
    monkeypatch.setattr("os.getuid", lambda: 12_345)
    with pytest.raises(PermissionError, match="somebody else's"):
        make_private_folder(tmp_path / "own")
