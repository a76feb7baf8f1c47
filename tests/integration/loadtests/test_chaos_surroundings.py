"""What faults are injected into: file systems, links, clocks, processes. Each is the real thing."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import redis as sync_redis

from conserve.launch.ports import find_free_ports
from conserve.launch.processes import is_alive
from loadtests.chaos.faults import Kill, NothingToHit, Stop
from loadtests.chaos.light import find_clock_library
from loadtests.chaos.link import Link, RelayLink, TunnelLink, has_namespaces
from loadtests.chaos.storage import FolderStorage, MemoryStorage, Storage
from loadtests.killing.redis_server import SteppedClock, TcpRedis
from loadtests.soak.growth import fit_growth
from loadtests.soak.sampling import measure_shared_memory, sample_processes

LIMIT_S = 60.0
IS_ROOT = os.geteuid() == 0
needs_mount = pytest.mark.skipif(not IS_ROOT or not shutil.which("mount"), reason="only root can mount")


def can_write(path: Path) -> bool:
    try:
        path.write_bytes(bytes(10_000))
    except OSError:
        return False
    return True


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[MemoryStorage]:
    storage = MemoryStorage(tmp_path / "files")
    storage.open()
    try:
        yield storage
    finally:
        storage.close()


@needs_mount
def test_a_file_system_is_read_only_and_full_for_a_while(memory: MemoryStorage, tmp_path: Path) -> None:
    file = tmp_path / "files" / "a"
    assert can_write(file)
    for spoil in (memory.make_read_only, memory.fill):
        spoil()
        assert not can_write(tmp_path / "files" / "b")
        assert file.stat().st_size == 10_000
        memory.restore()
        assert can_write(tmp_path / "files" / "b")
        (tmp_path / "files" / "b").unlink()
    memory.close()
    assert not (tmp_path / "files").is_mount()


@needs_mount
def test_files_that_are_being_written_are_waited_for(
    memory: MemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtests.chaos.storage.BUSY_LIMIT_S", 0.1)
    with (tmp_path / "files" / "a").open("wb"), pytest.raises(subprocess.CalledProcessError):
        memory.make_read_only()
    memory.make_read_only()
    assert not can_write(tmp_path / "files" / "b")


@pytest.mark.skipif(IS_ROOT, reason="root may write whatever the mode says")
def test_a_folder_is_read_only_for_a_while(tmp_path: Path) -> None:
    storage: Storage = FolderStorage(tmp_path / "files")
    storage.open()
    (tmp_path / "files" / "sub").mkdir()
    storage.make_read_only()
    assert not can_write(tmp_path / "files" / "sub" / "a")
    storage.restore()
    assert can_write(tmp_path / "files" / "sub" / "a")


LINKS = ["relay", pytest.param("tunnel", marks=pytest.mark.skipif(not has_namespaces(), reason="needs root"))]


@pytest.fixture(params=LINKS)
async def linked(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Link, sync_redis.Redis]]:
    port, behind = find_free_ports(2)
    generator = random.Random(1)
    link: Link = TunnelLink(port, generator) if request.param == "tunnel" else RelayLink(port, behind, generator)
    server = TcpRedis(tmp_path, port if request.param == "tunnel" else behind, link.bind, link.prefix)
    await link.open()
    try:
        server.start()
        await asyncio.to_thread(server.wait_until_ready)
        with sync_redis.Redis(host=link.host, port=link.port, socket_timeout=LIMIT_S) as client:
            yield link, client
    finally:
        await asyncio.to_thread(server.stop)
        await link.close()


async def measure_ping(client: sync_redis.Redis) -> float:
    began_s = time.monotonic()
    assert await asyncio.to_thread(client.ping)
    return time.monotonic() - began_s


async def test_packets_are_delayed(linked: tuple[Link, sync_redis.Redis]) -> None:
    link, client = linked
    await measure_ping(client)
    link.impair(0.2, 0.0)
    assert await measure_ping(client) >= 0.4
    link.restore()
    assert min([await measure_ping(client) for _ in range(10)]) < 0.4


async def test_what_is_dropped_comes_later(linked: tuple[Link, sync_redis.Redis]) -> None:
    link, client = linked
    await measure_ping(client)
    link.impair(0.0, 0.3)
    for _ in range(100):
        if await measure_ping(client) >= 0.2:  # What TCP waits at least until it sends again.
            break
    else:
        pytest.fail("nothing was dropped")
    link.restore()


async def test_nothing_passes_until_it_does(linked: tuple[Link, sync_redis.Redis]) -> None:
    link, client = linked
    await measure_ping(client)
    link.impair(0.0, 1.0)
    ping = asyncio.create_task(measure_ping(client))
    done, _ = await asyncio.wait([ping], timeout=1.0)
    assert not done
    link.restore()
    assert await asyncio.wait_for(ping, LIMIT_S) >= 1.0


@pytest.mark.skipif(not has_namespaces(), reason="needs root")
async def test_a_namespace_goes_with_its_link() -> None:
    link = TunnelLink(find_free_ports(1)[0], random.Random(1))
    await link.open()
    await link.close()
    listed = await asyncio.to_thread(subprocess.run, ["ip", "netns", "list"], capture_output=True, text=True)
    assert f"conserve-chaos-{os.getpid() % 16_384}" not in listed.stdout.split()


def read_offset(client: sync_redis.Redis) -> float:
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6 - time.time())


def test_the_clock_of_redis_jumps_and_its_data_stay(tmp_path: Path) -> None:
    library = find_clock_library()
    assert library is not None
    clock = SteppedClock(tmp_path / "clock")
    server = TcpRedis(tmp_path / "redis", find_free_ports(1)[0], environ=clock.make_environment(library))
    server.start()
    try:
        server.wait_until_ready()
        host, port = server.address.split(":")
        with sync_redis.Redis(host=host, port=int(port)) as client:
            for step_s in (500.0, -500.0, 0.0):
                clock.set_offset(step_s)
                until_s = time.monotonic() + LIMIT_S
                while abs(read_offset(client) - step_s) > 100:
                    assert time.monotonic() < until_s
                    time.sleep(0.1)
            client.set("kept", "1")
        server.stop()
        assert server.pid is None
        server.start()
        server.wait_until_ready()
        with sync_redis.Redis(host=host, port=int(port)) as client:
            assert client.get("kept") == b"1"
    finally:
        server.stop()


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    process = psutil.Popen(["bash", "-c", "sleep 600 & wait"])
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            for one in [*process.children(recursive=True), process]:
                one.kill()
        process.wait(LIMIT_S)


async def test_a_process_stands_still_for_a_while(sleeper: psutil.Process) -> None:
    fault = Stop(lambda: [sleeper], 0.9)
    assert await fault.inject() == frozenset()
    assert await wait_for_status(sleeper, stopped=True)
    await fault.heal()
    assert await wait_for_status(sleeper, stopped=False)


async def wait_for_status(process: psutil.Process, *, stopped: bool) -> bool:
    async with asyncio.timeout(LIMIT_S):
        while (process.status() == psutil.STATUS_STOPPED) != stopped:
            await asyncio.sleep(0.02)
    return True


async def test_a_process_is_killed_with_what_it_has_started(sleeper: psutil.Process) -> None:
    while not sleeper.children():
        await asyncio.sleep(0.02)
    (child,) = sleeper.children()
    revived: list[int] = []
    fault = Kill(lambda: [sleeper], 0.0, lambda: revived.append(1))
    assert await fault.inject() == {os.getpid(), sleeper.pid, child.pid}
    assert not is_alive(sleeper.pid)
    assert not is_alive(child.pid)
    await fault.heal()
    assert revived == [1]
    with pytest.raises(NothingToHit):
        await fault.inject()


LEAK = """
import sys
kept = []
while True:
    kept.append(bytearray(4 << 20) + b"x")
    kept.append(open("/dev/null"))
    print(len(kept), flush=True)
    if sys.stdin.readline() == "":
        break
"""


def test_a_process_that_leaks_is_seen(tmp_path: Path) -> None:
    with psutil.Popen(["python3", "-c", LEAK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        samples = []
        for _ in range(12):
            process.stdout.readline()
            samples.append(sample_processes([process], {process.pid: "leak"})[f"leak {process.pid}"])
            process.stdin.write("on\n")
            process.stdin.flush()
        process.stdin.close()
    times_s = [10.0 * number for number in range(12)]
    for values, least in (([one.rss_mib for one in samples], 4.0), ([float(one.files) for one in samples], 5.0)):
        assert not fit_growth("it", "", times_s, values, 0.02, least).is_flat


def test_files_in_shared_memory_are_counted(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(bytes(1 << 20))
    count, size_mib = measure_shared_memory(tmp_path)
    assert count == 1
    assert size_mib >= 0.9
