"""When a stack that is watched counts as lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conserve.launch.interruption import Interruption
from conserve.launch.processes import STACK_ID_VARIABLE
from conserve.launch.record import StackError, StackRecord, remove_record, write_record
from conserve.launch.watch import SILENCE_TOLERATED_S, watch_stack

ENVIRON = {"RAY_AUTH_TOKEN": "t"}
ENOUGH = 1_000
"""Looks; a watch that does not end by then has failed."""


class Clock:
    """Time that passes only while the watch sleeps. `events` are what happens at which sleep."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleeps = 0
        self.events: dict[int, Any] = {}

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, length_s: float) -> None:
        self.now_s += length_s
        self.sleeps += 1
        assert self.sleeps < ENOUGH
        self.events.get(self.sleeps, lambda: None)()


@pytest.fixture
def record(tmp_path: Path, serve: Any) -> StackRecord:
    serve.run("conserve")
    found = StackRecord(stack_id=uuid.uuid4().hex, application="conserve", base_url="http://b", dashboard_url=serve.url)
    write_record(tmp_path, found)
    return found


@pytest.fixture
def process(record: StackRecord) -> Iterator[subprocess.Popen[bytes]]:
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    started = subprocess.Popen(sleeping, env={STACK_ID_VARIABLE: record.stack_id})
    yield started
    started.kill()
    started.wait(60)


def test_the_watch_ends_when_somebody_takes_the_stack_down(tmp_path: Path, record: StackRecord) -> None:
    clock = Clock()
    clock.events = {3: lambda: remove_record(tmp_path)}
    watch_stack(tmp_path, ENVIRON, clock, clock.sleep)
    assert clock.sleeps == 3


def test_the_watch_ends_when_there_is_another_stack(tmp_path: Path, record: StackRecord) -> None:
    clock = Clock()
    clock.events = {2: lambda: write_record(tmp_path, record.model_copy(update={"stack_id": "other"}))}
    watch_stack(tmp_path, ENVIRON, clock, clock.sleep)
    assert clock.sleeps == 2


def test_a_stack_whose_ray_has_ended_is_lost(
    tmp_path: Path, record: StackRecord, serve: Any, process: subprocess.Popen[bytes]
) -> None:
    def end_ray() -> None:
        process.kill()
        process.wait(60)
        serve.applications.clear()

    clock = Clock()
    clock.events = {1: end_ray}
    with pytest.raises(StackError, match="Ray has ended"):
        watch_stack(tmp_path, ENVIRON, clock, clock.sleep)
    assert clock.sleeps == 2


def test_a_stack_that_is_being_taken_down_is_not_lost(
    tmp_path: Path, record: StackRecord, serve: Any, process: subprocess.Popen[bytes]
) -> None:
    def end_ray() -> None:
        process.kill()
        process.wait(60)
        serve.applications.clear()

    clock = Clock()
    clock.events = {1: end_ray, 2: lambda: remove_record(tmp_path)}
    watch_stack(tmp_path, ENVIRON, clock, clock.sleep)
    assert clock.sleeps == 2


def test_an_application_that_is_away_for_a_while_is_no_loss(
    tmp_path: Path, record: StackRecord, serve: Any, process: subprocess.Popen[bytes]
) -> None:
    clock = Clock()
    clock.events = {
        1: serve.applications.clear,
        8: lambda: serve.run("conserve"),
        9: serve.applications.clear,
    }
    with pytest.raises(StackError, match="has no application conserve"):
        watch_stack(tmp_path, ENVIRON, clock, clock.sleep)
    assert 8 * 5 + SILENCE_TOLERATED_S < clock.now_s < 11 * 5 + SILENCE_TOLERATED_S


def test_nothing_to_watch(tmp_path: Path) -> None:
    clock = Clock()
    watch_stack(tmp_path, ENVIRON, clock, clock.sleep)
    assert clock.sleeps == 0


def test_a_signal_between_two_waits_is_not_lost() -> None:
    with Interruption() as interruption:
        interruption.disarm()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            interruption.arm()
        os.kill(os.getpid(), signal.SIGTERM)  # Ignored: clean-up is under way.


def test_an_armed_interruption_raises() -> None:
    with Interruption() as interruption:
        interruption.disarm()
        interruption.arm()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
