"""What is counted where nodes and what runs on them are killed."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel
from rich.table import Table


class Blow(StrEnum):
    """What is killed. `NOTICE` is a node that is told before, as a spot machine that is taken away."""

    REPLICA = "replica"
    ENGINE = "engine"
    CONTROLLER = "controller"
    SERVE = "serve"
    HEAD = "head"
    NOTICE = "notice"
    NODE = "node"


class ScaleIn(BaseModel):
    """How long a replica takes to leave that Serve has told to go: from the change of their number to its end.

    Attributes:
        busy_s: With offline requests on it, and chats.
        idle_s: With chats alone.
    """

    busy_s: float
    idle_s: float


class Consequence(BaseModel):
    """What one blow has cost.

    Attributes:
        blow: What was killed.
        survivors: Share of the engines that lived on.
        online_held: Chats that killed processes had begun.
        online_failed: Chats that failed though they were held by none of those.
        online_reasons: Of these, some.
        online_back_s: Until a chat was answered that began afterwards; None: none was.
        offline_back_s: Until offline work was done at 90 % of what the survivors did before.
        offline_shares: What was done in each second, as a share of what the survivors did before.
        whole_back_s: Until as much was done as with all engines; None: not in the time that was watched.
    """

    blow: Blow
    survivors: float
    online_held: int
    online_failed: int
    online_reasons: list[str]
    online_back_s: float | None
    offline_back_s: float | None
    offline_shares: list[float]
    whole_back_s: float | None


class NodeKillReport(BaseModel):
    """What is written to `node-kills.json`: see `Consequence`, `ScaleIn` and `Verdict`."""

    engines: int
    consequences: list[Consequence]
    scale_in: ScaleIn | None
    chats: int
    batches: int
    requests: int
    lost: list[str]
    twice: list[str]
    wrong: list[str]
    unfinished: list[str]
    duration_s: float

    @property
    def is_clean(self) -> bool:
        """Whether nothing failed but what was held by something killed, and nothing was lost, done twice or wrong.

        With the head goes the only proxy, so chats cannot but fail then.
        """
        failed = any(one.online_failed and one.blow is not Blow.HEAD for one in self.consequences)
        failed |= any(one.offline_back_s is None for one in self.consequences)
        return not (failed or self.lost or self.twice or self.wrong or self.unfinished)


def render(report: NodeKillReport) -> Table:
    """The report as a table, a line for each blow."""
    table = Table(title=f"What dies in a cluster with {report.engines} engines, and what it costs")
    for heading in (
        "killed",
        "engines left",
        "chats held",
        "other chats failed",
        "next chat answered, s",
        "offline back, s",
        "worst second",
        "whole again, s",
    ):
        table.add_column(heading, justify="left" if heading == "killed" else "right")
    for one in report.consequences:
        table.add_row(
            one.blow.value,
            f"{one.survivors:.0%}",
            str(one.online_held),
            str(one.online_failed),
            _show(one.online_back_s),
            _show(one.offline_back_s),
            f"{min(one.offline_shares):.0%}",
            _show(one.whole_back_s),
        )
    troubles = {name: len(getattr(report, name)) for name in ("lost", "twice", "wrong", "unfinished")}
    found = ", ".join(f"{name} {count}" for name, count in troubles.items())
    if report.scale_in is not None:
        busy_s, idle_s = report.scale_in.busy_s, report.scale_in.idle_s
        found += f"; scale-in took {busy_s:.1f} s with offline work, {idle_s:.1f} s without"
    table.caption = f"{report.chats:,} chats; {report.requests:,} offline requests: {found}; {report.duration_s:.0f} s"
    return table


def _show(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"
