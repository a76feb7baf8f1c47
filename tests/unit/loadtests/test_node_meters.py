"""What counts offline work and chats in a cluster in which things die."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.killing.chats import find_held
from loadtests.killing.meter import WINDOW_S, OfflineMeter

RATE = 100


def write(log: Path, process: int, tokens: int) -> None:
    with log.open("a", encoding="ascii") as file:
        file.write(f"b0-1 {process}.1 0 {tokens}\n")


def record(log: Path, rates: list[dict[int, int]]) -> OfflineMeter:
    """A meter that has read so many tokens of each process in each second."""
    meter = OfflineMeter(log)
    for second, counts in enumerate(rates):
        for process, tokens in counts.items():
            write(log, process, tokens)
        meter.read(second + 1.0)
    return meter


def test_rates_are_those_of_the_processes_that_count(tmp_path: Path) -> None:
    meter = record(tmp_path / "log", [{7: 30, 8: 70}] * 10)
    assert meter.find_rate(0.0, 10.0) == pytest.approx(100)
    assert meter.find_rate(0.0, 10.0, without={8}) == pytest.approx(30)
    assert meter.count_processes(5.0) == 2


def test_a_line_that_is_not_whole_is_read_later(tmp_path: Path) -> None:
    log = tmp_path / "log"
    meter = OfflineMeter(log)
    log.write_text("b0-1 7.1 0 5\nb0-1 7.", encoding="ascii")
    meter.read(1.0)
    with log.open("a", encoding="ascii") as file:
        file.write("1 5 6\n")
    meter.read(2.0)
    assert (meter.find_rate(0.0, 1.0), meter.find_rate(1.0, 2.0)) == (5, 6)


def test_it_is_back_when_it_stays(tmp_path: Path) -> None:
    usual, less = {7: RATE}, {7: RATE // 2}
    meter = record(tmp_path / "log", [usual] * 10 + [less] * 3 + [usual] * 17)
    back_s = meter.find_return(10.0, 30.0, 0.95 * RATE)
    assert back_s is not None
    assert 3.0 <= back_s <= 3.0 + WINDOW_S
    assert meter.list_shares(10.0, 15.0, RATE) == [0.5, 0.5, 0.5, 1.0, 1.0]
    assert meter.find_return(13.0, 30.0, 0.95 * RATE) == 0.0


def test_what_does_not_come_back_is_not_back(tmp_path: Path) -> None:
    meter = record(tmp_path / "log", [{7: RATE}] * 10 + [{7: RATE // 2}] * 20)
    assert meter.find_return(10.0, 30.0, 0.95 * RATE) is None


def test_held_is_what_a_killed_process_has_begun_and_not_completed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = "begin a 1,begin front:a 3,begin b 1,end a 1,end front:a 3,begin c 2,begin front:c 3,begin d 2,end d 2"
    log.write_text(f"{words},end front:d 3\n".replace(",", "\n"), encoding="utf-8")
    assert find_held(log, {1}) == {"b"}
    assert find_held(log, {3}) == {"c"}
    assert find_held(log, {1, 2}) == {"b", "c"}
    assert find_held(log, {9}) == set()


def test_what_a_replica_has_completed_and_no_front_is_still_in_its_process(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("begin front:a 3\nbegin a 1\nend a 1\n", encoding="utf-8")
    assert find_held(log, {1}) == {"a"}
