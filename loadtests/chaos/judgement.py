"""Which failed chats were held by what was killed, and which fault the others belong to."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

from loadtests.chaos.kinds import ENTRANCES, ProcessKind
from loadtests.chaos.report import FaultRecord
from loadtests.chaos.schedule import FaultKind, FaultType
from loadtests.killing.chats import Chat

CUT_OFF: Final = ("RemoteProtocolError", "ReadError", "500 ")
"""How a chat ends whose front was killed: HAProxy closes the connection, or says that there is no answer."""


@dataclass(frozen=True)
class Incident:
    """A fault as chats meet it. Times are monotonic seconds.

    Attributes:
        fault: Its type.
        began_s: When it began to be injected; it was after the `hold_s` of its record.
        ended_s: When all was well again, or was no longer waited for.
        held: Names of the chats that killed processes had begun and not completed; None: nobody writes that down.
        record: What is written of it.
    """

    fault: FaultType
    began_s: float
    ended_s: float
    held: Set[str] | None
    record: FaultRecord


def judge(chats: Sequence[Chat], incidents: Sequence[Incident]) -> list[str]:
    """Counts failed chats in the records of the faults, as held by what was killed or not.

    One that is not held belongs to the last fault that had begun before its end.

    Args:
        chats: All of them.
        incidents: In the order in which they began.

    Returns:
        Those that failed before the first fault.
    """
    unexplained = []
    for chat in chats:
        if chat.outcome == "answered":
            continue
        before = [one for one in incidents if one.began_s <= chat.ended_s]
        holder = next((one for one in reversed(before) if holds(one, chat)), None)
        if holder is not None:
            holder.record.held_failed += 1
        elif before:
            record = before[-1].record
            record.others_failed += 1
            if (reason := f"{chat.outcome}: {chat.reason}") not in record.reasons:
                record.reasons.append(reason)
        else:
            unexplained.append(f"{chat.name}: {chat.outcome}: {chat.reason}")
    return unexplained


def holds(incident: Incident, chat: Chat) -> bool:
    """Whether a fault has ended a process that had a chat, so that it could not but fail.

    That is so for what killed replicas and fronts had begun, by their log. A killed front may have had a chat that it
    had not written down yet: one that was under way at that moment and was cut off. An entrance has every chat
    from its end until it is back, since there is no other.
    """
    if incident.fault.kind is not FaultKind.KILL or chat.outcome == "unanswered":
        return False
    target = ProcessKind(incident.fault.target)
    if target in ENTRANCES:
        return chat.began_s <= incident.ended_s
    was_under_way = chat.began_s <= incident.began_s + incident.record.hold_s  # It takes a moment until all are dead.
    if incident.held is None:
        return was_under_way and target in (
            ProcessKind.REPLICA,
            ProcessKind.ENGINE_CORE,
            ProcessKind.WORKER,
            ProcessKind.FRONT,
        )
    if chat.name in incident.held:
        return True
    return target is ProcessKind.FRONT and was_under_way and chat.reason.startswith(CUT_OFF)
