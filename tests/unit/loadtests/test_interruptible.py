"""Ctrl-C during a measurement."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
import typer

from loadtests.interruptible import run_interruptible


def test_a_signal_lets_the_work_clean_up_and_ends_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    async def work() -> None:
        try:
            asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
            await asyncio.sleep(20)
        finally:
            cleaned.append(True)

    with pytest.raises(typer.Exit) as ended:
        run_interruptible(work())
    assert (ended.value.exit_code, cleaned) == (130, [True])
    assert "Interrupted" in capsys.readouterr().err


def test_what_is_measured_comes_back() -> None:
    async def work() -> int:
        return 7

    assert run_interruptible(work()) == 7
