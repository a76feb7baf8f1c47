from __future__ import annotations

import os
import threading

import pytest

from loadtests.client_priority import go_before_others

LINUX = pytest.mark.skipif(not hasattr(os, "SCHED_RESET_ON_FORK"), reason="Linux only")


@LINUX
def test_it_goes_first_where_it_may_and_says_so_where_not() -> None:
    found: list[tuple[bool, int]] = []

    def try_it() -> None:
        found.append((go_before_others(), os.sched_getscheduler(0)))

    # A thread of its own, so that the tests go on as they were.
    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join(60)
    ((goes_first, policy),) = found
    assert goes_first == (policy & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR)


def test_without_the_right_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    said: list[str] = []
    assert not go_before_others(said.append)
    assert len(said) == 1
