"""The users of cluster/redis on real servers: what they may do, and what not. Other tests here run as one of them."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from redis.exceptions import NoPermissionError, ResponseError

from conserve.config import Settings
from conserve.jobs.connection import connect
from conserve.jobs.errors import UnsuitableServerError
from conserve.jobs.files import FileStore
from conserve.jobs.preflight import check_server
from conserve.jobs.survey import RedisAwayError, survey_server
from conserve.launch.ports import find_free_ports
from tests.certificates import make_certificates
from tests.integration.bench import LONG_MS, Bench, make_input
from tests.integration.redis_server import PASSWORDS, PROGRAMS, Server, run_as, running_server
from tests.redis_users import OF_TESTS, RULES, read_rules

ROOT = Path(__file__).parents[3]
DANGEROUS = (
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", 1),
    ("DEBUG", "SLEEP", 0),
    ("KEYS", "*"),
    ("SCAN", 0),
    ("SHUTDOWN",),
    ("ACL", "LIST"),
    ("ACL", "SETUSER", "x"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("MONITOR",),
    ("SUBSCRIBE", "x"),
    ("FUNCTION", "LIST"),
    ("MODULE", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("REPLICAOF", "127.0.0.1", 1),
    ("BGREWRITEAOF",),
    ("RENAME", "conserve:a", "conserve:b"),
    ("GET", "other:schema"),
    ("EVAL", "return redis.call('GET', 'other:schema')", 0),
    ("EVAL", "return redis.call('FLUSHALL')", 0),
)


@pytest.fixture(scope="module", params=sorted(PROGRAMS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(request.param, tmp_path_factory.mktemp("server"), find_free_ports(1)[0]) as server:
        yield server


def make_settings(url: str, folder: Path, **jobs: Any) -> Settings:
    return Settings.model_validate({"jobs": {"redis_url": url, "lease_ms": LONG_MS, **jobs}, "state_dir": folder})


def at(server: Server, url: str | None = None, **jobs: Any) -> Settings:
    """The one deployment of a server."""
    return make_settings(url or server.url(), server.folder, **jobs)


async def test_a_batch_comes_to_its_end(server: Server) -> None:
    settings = at(server)
    client = await connect(settings)
    try:
        bench = Bench(client, FileStore(settings.files_url), settings)
        batch_id = await bench.submit(make_input(3))
        await bench.keeper.run_once()
        await bench.finish(await bench.queue.claim(batch_id, 3, LONG_MS, "a"))
        assert (await bench.end(batch_id))[1] == ["id-1", "id-2", "id-3"]
    finally:
        await client.aclose()


@pytest.mark.parametrize("command", DANGEROUS, ids=lambda command: " ".join(map(str, command)))
def test_what_is_dangerous_is_denied(server: Server, command: tuple[str | int, ...]) -> None:
    denied = run_as(server, "conserve", *command)
    assert isinstance(denied, NoPermissionError | ResponseError), denied
    assert re.search("permission|ACL failure|can't run|can't access|not allowed|No such key", str(denied)), denied


@pytest.mark.parametrize("command", [("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("HGET", "conserve:x", "y")])
def test_ray_s_user_sees_ray_s_keys_only(server: Server, command: tuple[str, ...]) -> None:
    assert isinstance(run_as(server, "ray", *command), NoPermissionError)
    assert run_as(server, "ray", "HSET", "RAYx@y", "a", "b") in (0, 1)


def test_who_has_no_name_may_ask_whether_it_is_there(server: Server) -> None:
    with redis.Redis(port=server.port) as client:
        assert client.ping()
        for command in ("INFO", "GET x", "CONFIG GET *", "FLUSHALL"):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command.split())


def test_the_server_keeps_what_it_is_given_and_no_password_in_sight(server: Server) -> None:
    found = run_as(server, "conserve", "INFO", "persistence")
    assert found["aof_enabled"] == 1  # type: ignore[index] # redis' stubs
    settings = (server.folder / "valkey.conf").read_text()
    for line in ("appendfsync everysec", "maxmemory-policy noeviction", 'save ""'):
        assert line in settings
    process = psutil.Process(server.process.pid)
    sights = f"{settings} {process.cmdline()} {process.environ()} {(server.folder / 'log').read_text()}"
    assert [name for name, password in PASSWORDS.items() if password in sights] == []
    assert (server.folder / "valkey.conf").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("user", ["conserve", "nobody"])
async def test_a_wrong_password_is_refused_at_once_and_not_shown(server: Server, tmp_path: Path, user: str) -> None:
    settings = make_settings(server.url(user, "wr0ng"), tmp_path)
    with pytest.raises(UnsuitableServerError, match=r"takes neither this user nor this password.*redis_password") as no:
        await connect(settings)
    with pytest.raises(RedisAwayError, match="neither this user nor this password") as looked:
        survey_server(settings)
    assert "wr0ng" not in f"{no.value} {looked.value}"


async def test_the_password_may_be_in_a_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORDS['conserve']}\n")
    settings = at(server, f"redis://conserve@127.0.0.1:{server.port}/0", redis_password_file=path)
    await (await connect(settings)).aclose()
    survey = survey_server(settings)
    assert survey is not None
    assert survey.has_append_only_file
    for content, said in (("", "one line"), ("a\nb", "one line"), (None, "cannot be read"), ("\udcff", "no text")):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(UnsuitableServerError, match=f"redis_password_file.*{said}"):
            await connect(settings)


async def test_a_namespace_that_the_user_may_not_touch_is_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UnsuitableServerError, match=r"does not let its user.*cluster/redis"):
        await connect(make_settings(server.url(), tmp_path, namespace="other"))


async def test_tls_with_and_without_clients_certificates(tmp_path: Path) -> None:
    if "redis-server" not in PROGRAMS:
        pytest.skip("there is no redis-server, and the embedded one has no TLS")
    files = make_certificates(tmp_path)
    options = ["--tls-cert-file", files.certificate, "--tls-key-file", files.key, "--tls-ca-cert-file", files.authority]
    (port,) = find_free_ports(1)
    with running_server("redis-server", tmp_path / "server", port, *map(str, options), tls=True) as server:
        url = server.url(scheme="rediss")
        trusted = f"{url}?ssl_ca_certs={files.authority}"
        own = f"{trusted}&ssl_certfile={files.client}&ssl_keyfile={files.client_key}"
        # The client of TLS 1.3 is done before it is refused: it may find the connection gone before it reads why.
        refused = "certificate required|Connection reset"
        for each, said in ((url, "CERTIFICATE_VERIFY_FAILED"), (trusted, refused), (own, None)):
            settings = make_settings(each, tmp_path)
            trouble = await asyncio.to_thread(check_server, settings)
            assert (trouble is None) if said is None else re.search(said, str(trouble)), trouble
            assert PASSWORDS["conserve"] not in str(trouble)
        found = survey_server(make_settings(own, tmp_path))
        assert found is not None
        plain = await asyncio.to_thread(check_server, make_settings(server.url(), tmp_path))
        assert plain is not None


# That the tests share the rules.


def test_what_tests_do_besides_the_application_does_not() -> None:
    names = {name.split("|")[0] for name in OF_TESTS if name not in ("config|get", "config|set")}
    called = set()
    for package in ("jobs", "harvest"):
        for path in (ROOT / "conserve" / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            called |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for path in (ROOT / "conserve" / package).rglob("*.lua"):
            called |= {name.lower() for name in re.findall(r"call\('(\w+)'", path.read_text())}
    assert {"zadd", "hscan_iter", "xread", "hmget"} <= called
    assert {name for name in called if name.split("_")[0] in names} == set()


def test_every_rule_is_a_command_that_the_oldest_server_knows() -> None:
    rules = [rule for rule in read_rules() if rule.startswith("+") and not rule.startswith("+@")]
    assert len(rules) == len(set(rules))
    assert "waitaof" not in RULES.read_text().lower().split("user conserve")[1].splitlines()[0]
