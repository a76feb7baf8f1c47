from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from conserve.jobs import embedded
from conserve.jobs.errors import EmbeddedServerError


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    embedded.stop(tmp_path)


def pid_of(state_dir: Path) -> int:
    return int((state_dir / "redis" / "redis.pid").read_text())


def test_there_is_one_server_however_often_it_is_asked_for(state_dir: Path) -> None:
    assert not embedded.is_running(state_dir)
    code = "import sys, pathlib; from conserve.jobs import embedded; embedded.ensure_running(pathlib.Path(sys.argv[1]))"
    others = [subprocess.Popen([sys.executable, "-c", code, str(state_dir)]) for _ in range(2)]
    urls: list[str] = []
    threads = [threading.Thread(target=lambda: urls.append(embedded.ensure_running(state_dir))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [other.wait(60) for other in others] == [0, 0]
    assert len(urls) == 3
    assert len(set(urls)) == 1
    folder = state_dir / "redis"
    # `process_iter` gives None for what it may not read, or what has just ended (servers of other tests).
    servers = [p.pid for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder)]
    assert servers == [pid_of(state_dir)]
    assert psutil.Process(pid_of(state_dir)).ppid() != os.getpid(), "it outlives the process that started it"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o700
    with redis.Redis.from_url(urls[0]) as client:
        assert client.config_get("port") == {"port": "0"}
        found = client.config_get("appendonly", "appendfsync", "maxmemory-policy")
        assert sorted(found.values()) == ["everysec", "noeviction", "yes"]


def test_data_survives_a_kill(state_dir: Path) -> None:
    url = embedded.ensure_running(state_dir)
    with redis.Redis.from_url(url) as client:
        client.set("key", "value")
        assert client.execute_command("WAITAOF", 1, 0, 5_000)[0] == 1
    process = psutil.Process(pid_of(state_dir))
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not embedded.is_running(state_dir)
    with redis.Redis.from_url(embedded.ensure_running(state_dir)) as client:
        assert client.get("key") == b"value"
    assert embedded.stop(state_dir)
    assert not embedded.is_running(state_dir)
    assert not embedded.stop(state_dir)


def test_only_the_right_process_is_stopped(state_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    embedded.ensure_running(other)
    try:
        (state_dir / "redis").mkdir()
        for pid in (os.getpid(), pid_of(other)):
            (state_dir / "redis" / "redis.pid").write_text(str(pid))
            assert not embedded.is_running(state_dir)
            assert not embedded.stop(state_dir)
        assert embedded.is_running(other)
    finally:
        assert embedded.stop(other)


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    state_dir = tmp_path / ("long" * 30)
    url = embedded.ensure_running(state_dir)
    try:
        socket = Path(url.removeprefix("unix://"))
        assert len(os.fsencode(socket)) <= 107
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        with redis.Redis.from_url(url) as client:
            assert client.ping()
    finally:
        assert embedded.stop(state_dir)


def test_any_path_will_do(tmp_path: Path) -> None:
    state_dir = tmp_path / "a b#c?d%20'\"ü"
    url = embedded.ensure_running(state_dir)
    try:
        with redis.Redis.from_url(url) as client:
            assert client.ping()
        assert embedded.is_running(state_dir)
    finally:
        assert embedded.stop(state_dir)


def test_a_server_that_cannot_start_says_why(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_PID_TIMEOUT_S", 0.5)
    (state_dir / "redis").mkdir()
    (state_dir / "redis" / "appendonlydir").write_text("in the way")
    with pytest.raises(EmbeddedServerError, match=r"(?s)log.*appendonlydir"):
        embedded.ensure_running(state_dir)


def test_damaged_data_are_said_with_what_to_do_and_stay_as_they_are(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_PID_TIMEOUT_S", 0.5)
    with redis.Redis.from_url(embedded.ensure_running(state_dir)) as client:
        for number in range(100):
            client.set(f"key{number}", "value" * 20)
    embedded.stop(state_dir)
    (written,) = (state_dir / "redis" / "appendonlydir").glob("*.incr.aof")
    content = bytearray(written.read_bytes())
    content[1_000:1_010] = b"\x00garbage\xff"[:10]
    written.write_bytes(content)
    with pytest.raises(EmbeddedServerError, match=r"(?s)are damaged\. Copy that folder first.*valkey-check-aof --fix"):
        embedded.ensure_running(state_dir)
    assert not embedded.is_running(state_dir)
    assert written.read_bytes() == content


def test_a_start_that_takes_too_long_is_an_error(
    state_dir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path_factory.mktemp("bin") / "sleeper"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    monkeypatch.setattr(embedded, "get_binary_path", lambda: program)
    monkeypatch.setattr(embedded, "_START_TIMEOUT_S", 0.2)
    with pytest.raises(EmbeddedServerError, match=r"did not start within 0\.2 s"):
        embedded.ensure_running(state_dir)


def test_an_answer_that_takes_too_long_is_waited_for(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = redis.Redis.ping
    slow = iter([True, True])

    def ping(client: redis.Redis) -> object:
        if next(slow, False):
            raise redis.TimeoutError("Timeout reading from socket")
        return real(client)

    monkeypatch.setattr(redis.Redis, "ping", ping)
    embedded.ensure_running(state_dir)
    assert next(slow, None) is None


def test_a_server_that_never_answers_is_an_error(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded.ensure_running(state_dir)

    def ping(_: redis.Redis) -> None:
        raise redis.TimeoutError("Timeout reading from socket")

    monkeypatch.setattr(redis.Redis, "ping", ping)
    monkeypatch.setattr(embedded, "_START_TIMEOUT_S", 0.2)
    with pytest.raises(EmbeddedServerError, match="does not answer"):
        embedded.ensure_running(state_dir)
