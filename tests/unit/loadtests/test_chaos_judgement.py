"""Which failed chats a fault answers for."""

from __future__ import annotations

import pytest

from loadtests.chaos.judgement import Incident, judge
from loadtests.chaos.kinds import ProcessKind
from loadtests.chaos.report import TROUBLES, ChaosReport, FaultRecord, list_rows, render
from loadtests.chaos.schedule import FaultKind, FaultType
from loadtests.killing.chats import Chat, Outcome


def make_incident(
    target: ProcessKind | None, held: set[str] | None, *, began_s: float = 10.0, kind: FaultKind = FaultKind.KILL
) -> Incident:
    fault = FaultType(kind, target.value if target else "")
    record = FaultRecord(number=0, name=fault.name, at_s=began_s, hold_s=0.0)
    return Incident(fault, began_s, began_s + 5.0, held, record)


def make_chat(name: str = "c", began_s: float = 9.0, outcome: Outcome = "broken", reason: str = "lost") -> Chat:
    return Chat(name, began_s, began_s + 2.0, outcome, reason)


def count(incident: Incident, chat: Chat) -> tuple[int, int]:
    judge([chat], [incident])
    return incident.record.held_failed, incident.record.others_failed


def test_what_a_killed_replica_held_may_fail() -> None:
    assert count(make_incident(ProcessKind.REPLICA, {"c"}), make_chat()) == (1, 0)
    assert count(make_incident(ProcessKind.REPLICA, {"other"}), make_chat()) == (0, 1)


def test_an_answer_that_never_ends_is_held_by_nobody() -> None:
    assert count(make_incident(ProcessKind.REPLICA, {"c"}), make_chat(outcome="unanswered")) == (0, 1)


def test_answered_chats_count_for_nothing() -> None:
    assert count(make_incident(ProcessKind.REPLICA, {"c"}), make_chat(outcome="answered", reason="")) == (0, 0)


@pytest.mark.parametrize(("began_s", "expected"), [(9.0, (1, 0)), (14.0, (1, 0)), (16.0, (0, 1))])
def test_an_entrance_has_all_chats_until_it_is_back(began_s: float, expected: tuple[int, int]) -> None:
    assert count(make_incident(ProcessKind.HAPROXY, set()), make_chat(began_s=began_s)) == expected


def test_a_killed_front_may_not_have_written_down_what_it_had() -> None:
    cut_off = make_chat(reason="RemoteProtocolError server disconnected", outcome="refused")
    assert count(make_incident(ProcessKind.FRONT, set()), cut_off) == (1, 0)
    assert count(make_incident(ProcessKind.FRONT, set()), make_chat(reason="503 something")) == (0, 1)
    later = make_chat(began_s=11.0, reason="RemoteProtocolError server disconnected")
    assert count(make_incident(ProcessKind.FRONT, set()), later) == (0, 1)
    slowly_killed = make_incident(ProcessKind.FRONT, set())
    slowly_killed.record.hold_s = 1.5
    assert count(slowly_killed, later) == (1, 0)


def test_where_nobody_writes_it_down_it_is_what_was_under_way() -> None:
    assert count(make_incident(ProcessKind.WORKER, None), make_chat()) == (1, 0)
    assert count(make_incident(ProcessKind.WORKER, None), make_chat(began_s=10.5)) == (0, 1)
    assert count(make_incident(ProcessKind.REDIS, None), make_chat()) == (0, 1)


def test_faults_that_end_no_process_hold_nothing() -> None:
    assert count(make_incident(ProcessKind.REPLICA, {"c"}, kind=FaultKind.STOP), make_chat()) == (0, 1)
    assert count(make_incident(None, set(), kind=FaultKind.STORAGE_FULL), make_chat()) == (0, 1)


def test_others_belong_to_the_last_fault_before_their_end() -> None:
    first, second = make_incident(None, set(), began_s=1.0), make_incident(None, set(), began_s=100.0)
    for incident in (first, second):
        object.__setattr__(incident, "fault", FaultType(FaultKind.LINK_CUT))
    judge([make_chat(began_s=20.0, reason="why")], [first, second])
    assert (first.record.others_failed, second.record.others_failed) == (1, 0)
    assert first.record.reasons == ["broken: why"]


def test_what_fails_before_the_first_fault_is_said() -> None:
    incident = make_incident(None, set(), began_s=100.0)
    assert judge([make_chat(reason="why")], [incident]) == ["c: broken: why"]
    assert incident.record.others_failed == 0


def make_report(**changes: object) -> ChaosReport:
    fault = FaultRecord(
        number=3,
        name="SIGKILL redis",
        at_s=1.0,
        hold_s=2.0,
        killed=1,
        online_back_s=0.1,
        offline_back_s=3.0,
        processes_back_s=2.0,
    )
    values: dict[str, object] = {
        **{key: [] for key in ("stack", "not_injected", *TROUBLES)},
        **dict.fromkeys(("chats", "chats_held_failed", "chats_others_failed", "batches", "requests"), 0),
        "seed": 1,
        "engine": "light",
        "faults": [fault],
        "processes": {"redis": 1},
        "not_applicable": {},
        "longest_silence_s": 0.5,
        "duration_s": 60.0,
    }
    return ChaosReport.model_validate({**values, **changes})


def test_a_report_is_clean_without_problems() -> None:
    report = make_report()
    assert report.is_clean
    assert "All contracts held." in render(report)
    assert list_rows(report.faults) == [("SIGKILL redis", "1", "0", "0", "0.1", "3.0", "2.0", "3.0")]


@pytest.mark.parametrize("name", TROUBLES)
def test_each_problem_shows(name: str) -> None:
    report = make_report(**{name: ["b0.1-7"]})
    assert not report.is_clean
    assert f"- {name}: b0.1-7" in render(report)


def test_what_does_not_recover_is_a_problem() -> None:
    report = make_report()
    report.faults[0].offline_back_s = None
    report.faults[0].others_failed = 2
    assert len(report.problems) == 2
