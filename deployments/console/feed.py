"""One reader of Redis for all pages that are open at this front; it rests while there are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import structlog
from pydantic import BaseModel

from conserve.config import Settings
from conserve.harvest.board import CapacityBoard
from conserve.jobs.api_keys import Scope
from conserve.jobs.batch import ENDPOINTS_BY_TASK
from conserve.jobs.errors import ApiError, NoPlaceError
from conserve.jobs.link import OUTAGES
from conserve.jobs.queue import JobQueue
from conserve.jobs.tenants import TenantDirectory
from deployments.console.frames import MOST_BATCHES, BatchesFrame, Hello, ReplicasFrame

log = structlog.get_logger(__name__)

PERIOD_S: Final = 0.5
BATCHES_EACH: Final = 2
"""Batches are read in every second look."""
MOST_STREAMS: Final = 200
BEAT_S: Final = 5.0
"""A stream is never silent for longer; a page that hears nothing for three times that says so."""
LONGEST_STREAM_S: Final = 3_600.0
"""Then it ends, and the page begins another: no stream outlives what it was let in for."""
READ_TIMEOUT_S: Final = 5.0
RETRY_AFTER_S: Final = 10
BEAT: Final = ": beat\n\n"
GONE: Final = "the queue is not available; chats are not affected"


class Sources(NamedTuple):
    """Where it reads, while Redis is there."""

    board: CapacityBoard
    queue: JobQueue


@dataclass
class _Frame:
    """The newest event of a kind; its number tells who has had it."""

    number: int
    text: str


class ConsoleFeed:
    """The events of the console's pages.

    Args:
        find_sources: Called at each look; None: Redis is away.
        settings: ConServe's settings.
        tenants: Who may look on.
        is_ending: Whether this front has to go, which waits for its requests to end: streams would not.
        period_s: From one look to the next.
    """

    def __init__(
        self,
        find_sources: Callable[[], Sources | None],
        settings: Settings,
        tenants: TenantDirectory,
        is_ending: Callable[[], bool] = lambda: False,
        period_s: float = PERIOD_S,
    ) -> None:
        self._find_sources = find_sources
        self._settings = settings
        self._tenants = tenants
        self._is_ending = is_ending
        self._period_s = period_s
        self._places = tenants.console_streams(MOST_STREAMS)
        self._open: dict[str, int] = {}
        self._state: _Frame | None = None
        self._batches: dict[str, _Frame] = {}
        self._number = 0
        self._changed = asyncio.Condition()
        self._reader: asyncio.Task[None] | None = None

    @property
    def is_reading(self) -> bool:
        """Whether Redis is asked at the moment."""
        return self._reader is not None

    @property
    def open_count(self) -> int:
        """How many pages are open."""
        return self._places.taken

    async def open(self, authorization: str | None, *, is_local: bool = True) -> AsyncGenerator[str, None]:
        """The events for one page, in the form of server-sent events. It has its place before this returns.

        Args:
            authorization: The header of the request.
            is_local: Whether that comes from this machine.

        Raises:
            ApiError: as `TenantDirectory.admit`, or 429, as many pages as allowed are open.
        """
        tenant = self._tenants.admit(authorization, Scope.OFFLINE, is_local=is_local).tenant

        def may_go_on() -> bool:
            return self._tenants.still_admits(authorization, Scope.OFFLINE, is_local=is_local)

        events = self._follow(tenant, may_go_on)
        try:
            await anext(events)
        except NoPlaceError as error:
            whose = "with this key" if error.is_own else "at this server"
            raise ApiError(
                429,
                f"{error.limit} consoles are open {whose}, which is the limit.",
                code="too_many_streams",
                retry_after_s=RETRY_AFTER_S,
            ) from None
        return events

    async def _follow(self, tenant: str, may_go_on: Callable[[], bool]) -> AsyncGenerator[str, None]:
        with self._places.take(tenant):
            self._enter(tenant)
            try:
                yield ""
                endpoints = [str(one) for one in ENDPOINTS_BY_TASK[self._settings.model.task]]
                yield write_event("hello", Hello.of(self._settings, tenant, endpoints, self._period_s))
                async for event in self._follow_frames(tenant, may_go_on):
                    yield event
            finally:
                await self._leave(tenant)

    async def _follow_frames(self, tenant: str, may_go_on: Callable[[], bool]) -> AsyncGenerator[str, None]:
        # A slow page misses frames, and always gets the newest: nothing is kept for it.
        until_s = time.monotonic() + LONGEST_STREAM_S
        seen = 0
        while time.monotonic() < until_s and not self._is_ending() and may_go_on():
            frames = [one for one in (self._state, self._batches.get(tenant)) if one is not None and one.number > seen]
            if frames:
                seen = max(one.number for one in frames)
                for frame in frames:
                    yield frame.text
                continue
            try:
                async with asyncio.timeout(BEAT_S), self._changed:
                    await self._changed.wait()
            except TimeoutError:
                yield BEAT

    def _enter(self, tenant: str) -> None:
        self._open[tenant] = self._open.get(tenant, 0) + 1
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_on())

    async def _leave(self, tenant: str) -> None:
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]
            self._batches.pop(tenant, None)
        if not self._open and self._reader is not None:
            self._reader.cancel()
            self._reader = self._state = None

    async def _read_on(self) -> None:
        look = 0
        while True:
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    await self._look(with_batches=look % BATCHES_EACH == 0)
            except (*OUTAGES, TimeoutError):
                self._put_state(write_event("away", Away(reason=GONE)))
            except Exception:
                # A fault of ours must not leave the pages with old figures that look like new ones.
                log.exception("the console could not be told the state")
                self._put_state(write_event("away", Away(reason="the state could not be read")))
            async with self._changed:
                self._changed.notify_all()
            look += 1
            await asyncio.sleep(self._period_s)

    async def _look(self, *, with_batches: bool) -> None:
        sources = self._find_sources()
        if sources is None:
            self._put_state(write_event("away", Away(reason=GONE)))
            return
        reports = await sources.board.read_reports()
        has_controller = await sources.queue.leader() is not None
        for tenant in list(self._open):
            if with_batches or tenant not in self._batches:
                page = await sources.queue.page(None, MOST_BATCHES, tenant)
                if page is not None and tenant in self._open:
                    self._put_batches(tenant, write_event("batches", BatchesFrame.of(page)))
        self._put_state(write_event("replicas", ReplicasFrame.of(reports, has_controller=has_controller)))

    def _put_state(self, text: str) -> None:
        self._number += 1
        self._state = _Frame(self._number, text)

    def _put_batches(self, tenant: str, text: str) -> None:
        before = self._batches.get(tenant)
        if before is None or before.text != text:
            self._number += 1
            self._batches[tenant] = _Frame(self._number, text)


class Away(BaseModel):
    """Nothing can be said of replicas and batches, for this reason."""

    reason: str


def write_event(name: str, body: BaseModel) -> str:
    """A server-sent event; JSON has no line breaks."""
    return f"event: {name}\ndata: {body.model_dump_json()}\n\n"
