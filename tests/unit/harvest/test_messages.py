"""Replicas and the controller of different versions, as during a rolling update."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from conserve.harvest.messages import (
    SCHEMA_VERSION,
    AllotmentMessage,
    CapacityReport,
    ControllerRecord,
    ReplicaLine,
)
from conserve.policy.allotment import Allotment, JobShare
from conserve.policy.replica_capacity import Headroom, KvRoom, ReplicaCapacity

OLDER_REPORT: dict[str, Any] = {
    "replica_id": "r1",
    "model": "m",
    "state": "serving",
    "window": 4,
    "alone": False,
    "online_running": 2,
    "online_waiting": 1,
    "offline_running": 3,
    "kv_usage": 0.5,
    "restarts": {"replica": 1},
    "costs": {"overhead_ms": 8.0, "prompt_token_ms": 0.03, "decode_ms": 0.04},
    "stopped": ["b9"],
}
"""As version 1 wrote it."""
NEWER_REPORT = OLDER_REPORT | {
    "schema_version": 99,
    "at_ms": 5_000,
    "state": "hibernating",
    "costs": {"overhead_ms": 8.0, "prompt_token_ms": 0.03, "decode_ms": 0.04, "draft_ms": 1.0},
    "kv_tokens": 1_000,
    "kv_free_tokens": 600,
    "kv_reserved_tokens": 100,
    "kv_offline_tokens": 200,
    "headroom_tokens_per_s": 900.0,
    "headroom_requests": 9.0,
    "slo_attainment": 0.97,
    "moods": [{"of": "gpu 0"}],
}
OLDER_ALLOTMENT = {"window": 3, "jobs": [["b1", 2]], "late": [["b2", 1]], "floor": 1, "floor_share": 0.05}


def line_of(report: dict[str, Any]) -> ReplicaLine:
    return msgspec.json.decode(json.dumps(report), type=ReplicaLine)


def test_a_report_of_an_older_replica_is_understood() -> None:
    expected = ReplicaCapacity("r1", "m", "serving", 2, 1, 0.5, 3, frozenset({"b9"}))
    assert line_of(OLDER_REPORT).to_capacity(now_ms=10**15, silent_ms=1) == expected
    report = CapacityReport.model_validate_json(json.dumps(OLDER_REPORT))
    assert report.to_capacity() == expected
    assert report.schema_version == 1


def test_a_report_of_a_newer_replica_is_understood_as_far_as_it_goes() -> None:
    capacity = line_of(NEWER_REPORT).to_capacity(now_ms=6_000, silent_ms=2_500)
    assert capacity.state == "draining", "a state that is not known is not to serve"
    assert capacity.headroom == Headroom(900.0, 9.0)
    assert capacity.kv_room == KvRoom(1_000, 600, 100, 200)
    assert (capacity.slo_attainment, capacity.silent) == (0.97, False)
    assert line_of(NEWER_REPORT).to_capacity(now_ms=8_000, silent_ms=2_500).silent
    assert CapacityReport.model_validate_json(json.dumps(NEWER_REPORT)).to_capacity() == capacity


def test_both_readers_of_a_report_know_the_same_fields() -> None:
    report = CapacityReport.model_validate(OLDER_REPORT)
    written = json.loads(report.model_dump_json())
    for field in msgspec.structs.fields(ReplicaLine):
        if field.default is not msgspec.NODEFAULT:
            default = CapacityReport.model_fields[field.name].default
            assert field.default == default, field.name
        assert field.name in written


def test_an_older_replica_understands_an_allotment() -> None:
    allotment = Allotment(3, (JobShare("b1", 2),), (JobShare("b2", 1),), 1, 0.05, 9_000, {"b1": 100.0})
    written = json.loads(msgspec.json.encode(AllotmentMessage.of(allotment, 7)))
    assert {key: written[key] for key in OLDER_ALLOTMENT} == OLDER_ALLOTMENT, "what version 1 reads stands as it stood"
    assert (written["schema_version"], written["at_ms"]) == (SCHEMA_VERSION, 7)


def test_an_allotment_of_an_older_or_newer_controller_is_understood() -> None:
    expected = Allotment(3, (JobShare("b1", 2),), (JobShare("b2", 1),), 1, 0.05)
    for message in (OLDER_ALLOTMENT, OLDER_ALLOTMENT | {"schema_version": 99, "colour": "red"}):
        assert msgspec.json.decode(json.dumps(message), type=AllotmentMessage).to_allotment() == expected


@pytest.mark.parametrize("change", [{"window": -1}, {"floor_share": 2.0}, {"jobs": "all"}])
def test_an_allotment_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(json.dumps(OLDER_ALLOTMENT | change), type=AllotmentMessage)


def test_a_record_of_nothing_is_blank() -> None:
    assert msgspec.json.decode(b"{}", type=ControllerRecord) == ControllerRecord()
