"""`python -m loadtests.scale_check`: how many replicas there are with offline work alone, with chats, and after them.

A small cluster of two nodes with light engines, between one and two replicas, and batches of which there are always
enough. Serve should start a second replica for the chats alone, and take it away after them though it has offline work,
of which nothing may be lost. Exits with 1 if not.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import BaseModel
from rich.console import Console

from conserve.config import Settings
from conserve.jobs import embedded
from conserve.telemetry.logs import configure_program_logs
from deployments.testing.cluster import LocalCluster
from deployments.testing.names import REPLICA, name_actor
from loadtests.interruptible import run_interruptible
from loadtests.killing.chats import ChatClients
from loadtests.killing.client import PatientClient
from loadtests.killing.ledger import Verdict
from loadtests.killing.meter import OfflineMeter
from loadtests.killing.node_run import make_settings
from loadtests.killing.questions import make_input
from loadtests.killing.roles import ENGINE_LOG
from loadtests.killing.testing.engine import LightQuestions
from loadtests.killing.testing.mortal import MortalEngine
from loadtests.report import describe_machine

LOOK_BACK_S: Final = 10.5
OFFLINE_ALONE_S: Final = 2 * LOOK_BACK_S
CLIENTS: Final = 8
REQUESTS: Final = 400
LIMIT_S: Final = 180.0
POLL_S: Final = 0.2


class ScaleReport(BaseModel):
    """What is written to `scale-check.json`.

    Attributes:
        offline_alone: The most replicas while there was offline work and nothing else.
        up_s: Until there was a second one for chats; None: there was none.
        down_s: Until there was one again after them; None: there was not.
        offline_on_second: Whether the second one had offline work when it was taken away.
        lost, twice, wrong, unfinished: As in `Verdict`.
    """

    offline_alone: int
    up_s: float | None
    down_s: float | None
    offline_on_second: bool
    lost: list[str]
    twice: list[str]
    wrong: list[str]
    unfinished: list[str]

    @property
    def is_right(self) -> bool:
        """Whether it is as it should be."""
        is_scaled = self.offline_alone == 1 and self.up_s is not None and self.down_s is not None
        return is_scaled and not (self.lost or self.twice or self.wrong or self.unfinished)


class ScaleCheck:
    """One run, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        scaling = {"max_replicas": 2, "target_online_requests": 2, "upscale_delay_s": 0, "downscale_delay_s": 0}
        args = make_settings(folder, 1, 15_000).model_dump() | {"autoscaling": {**scaling, "look_back_s": LOOK_BACK_S}}
        self._settings = Settings.model_validate(args)
        self._cluster = LocalCluster(folder, 2)
        self._meter = OfflineMeter(folder / ENGINE_LOG)

    async def run(self) -> ScaleReport:
        """Starts everything, watches it, and stops everything."""
        client = PatientClient(self._cluster.base_url, "none")
        verdict = Verdict(LightQuestions())
        start = asyncio.ensure_future(asyncio.to_thread(self._start))
        try:
            await asyncio.shield(start)
            meter = asyncio.create_task(self._meter.run())
            batch = await client.submit(make_input(LightQuestions(), "b", REQUESTS), {"name": "b"})
            counts = []
            until_s = time.monotonic() + OFFLINE_ALONE_S
            while time.monotonic() < until_s:
                counts.append(self._count())
                await asyncio.sleep(POLL_S)
            is_over = False
            chats = asyncio.create_task(
                ChatClients(self._cluster.base_url, CLIENTS, LightQuestions()).run(lambda: is_over)
            )
            up_s = await self._wait_for(2)
            await self._wait_until_both_work()
            is_over = True
            await chats
            began_s = time.monotonic()
            down_s = await self._wait_for(1)
            has_worked = self._meter.count_processes(began_s) == 2
            async with asyncio.timeout(LIMIT_S):
                while not (ended := await client.get(batch.id)).status.ended:  # noqa: ASYNC110 - polled
                    await asyncio.sleep(POLL_S)
            verdict.check(ended, "b", REQUESTS, await client.read_lines(ended))
            meter.cancel()
        finally:
            await client.close()
            # A thread cannot be interrupted: what it has started after `_stop` would stay.
            await asyncio.wait([start], timeout=LIMIT_S)
            await asyncio.to_thread(self._stop)
        found: dict[str, Any] = {name: getattr(verdict, name) for name in ("lost", "twice", "wrong", "unfinished")}
        return ScaleReport(offline_alone=max(counts), up_s=up_s, down_s=down_s, offline_on_second=has_worked, **found)

    def _start(self) -> None:
        settings = self._settings.with_redis_url(embedded.ensure_running(self._folder))
        self._cluster.start()
        # Ray reads its environment when it is imported, which is set by now.
        from deployments.testing.application import build_light_app

        self._cluster.run(build_light_app(settings, MortalEngine, fronts=1))

    def _stop(self) -> None:
        self._cluster.stop()
        embedded.stop(self._folder)

    def _count(self) -> int:
        return len(self._cluster.find_actors(name_actor(REPLICA)))

    async def _wait_for(self, replicas: int) -> float | None:
        began_s = time.monotonic()
        while self._count() != replicas:
            if time.monotonic() > began_s + LIMIT_S:
                return None
            await asyncio.sleep(POLL_S)
        return time.monotonic() - began_s

    async def _wait_until_both_work(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            while self._meter.count_processes(time.monotonic() - 2.0) < 2:  # noqa: ASYNC110 - other processes write to a file
                await asyncio.sleep(POLL_S)


def main(out: Annotated[Path | None, typer.Option(help="Folder for scale-check.json.")] = None) -> None:
    """Prints what was seen; exits with 1 if it was not as it should be."""
    configure_program_logs()
    with tempfile.TemporaryDirectory(prefix="conserve-scale-") as name:
        report = run_interruptible(ScaleCheck(Path(name)).run())
    Console(highlight=False).print_json(data=report.model_dump())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        content = {"machine": describe_machine(), **report.model_dump()}
        (out / "scale-check.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if not report.is_right:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
