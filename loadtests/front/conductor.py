"""The two phases of a load test against a running application: online requests alone, then beside batches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from loadtests.engine_status import StatusReader, StatusReport
from loadtests.front.calls import CallError, Calls
from loadtests.front.figures import ALONE, BESIDE
from loadtests.front.locust_process import run_locust
from loadtests.front.record_file import read_records
from loadtests.front.schedule import OnlinePlan
from loadtests.front.streamed_chat import make_chat, stream_chat
from loadtests.front.timeline import Phase
from loadtests.front.wording import Wording

STATUS_PERIOD_S: Final = 0.5
STATUS_TIMEOUT_S: Final = 5.0
WARM_UP_CHATS: Final = 3
PAUSE_S: Final = 3.0
LOCUST_MARGIN_S: Final = 60.0
CHAT_TIMEOUT_S: Final = 60.0


class LoadTestError(RuntimeError):
    """The load test cannot go on; the message says why."""


@dataclass(frozen=True)
class LoadPlan:
    """What to do.

    Attributes:
        online: The chats of the first phase; those of the second are the same for as long, with other words.
        beside_s: Length of the second phase.
        out: Folder of the files that stay.
        batches: How many are submitted, `batch_every_s` apart, of `batch_requests` each. What has not ended with the
            chats is cancelled.
        batch_words, batch_output_tokens: Lengths of their requests.
    """

    online: OnlinePlan
    beside_s: float
    out: Path
    batches: int = 4
    batch_requests: int = 60
    batch_every_s: float = 10.0
    batch_words: int = 200
    batch_output_tokens: int = 48


class LoadTest:
    """Runs a `LoadPlan` against the application at `base_url`."""

    def __init__(self, plan: LoadPlan, base_url: str, announce: Callable[[str], None]) -> None:
        self._plan = plan
        self._base_url = base_url
        self._announce = announce
        self.model = ""

    async def run(self) -> list[Phase]:
        """Both phases.

        Raises:
            LoadTestError, LocustError: it cannot go on.
        """
        await asyncio.to_thread(self._warm_up)
        plan = self._plan
        self._announce(f"online requests alone, {plan.online.duration_s:g} s")
        alone = await self._run_phase(ALONE, plan.online.duration_s, 1, [])
        await asyncio.sleep(PAUSE_S)
        self._announce(f"online requests beside batches, {plan.beside_s:g} s")
        batches = {
            "batches": plan.batches,
            "batch-requests": plan.batch_requests,
            "batch-every-s": plan.batch_every_s,
            "batch-words": plan.batch_words,
            "batch-output-tokens": plan.batch_output_tokens,
        }
        options = [word for name, value in batches.items() for word in (f"--{name}", str(value))]
        return [alone, await self._run_phase(BESIDE, plan.beside_s, 2, options)]

    def _warm_up(self) -> None:
        """The first requests load what the first use loads."""
        calls, wording = Calls(self._base_url), Wording(0)
        try:
            models = calls.get_json("/v1/models").get("data") or []
        except CallError as error:
            raise LoadTestError(str(error)) from None
        if not models:
            raise LoadTestError(f"{self._base_url}/v1/models names no model")
        self.model = str(models[0]["id"])
        for _ in range(WARM_UP_CHATS):
            record = stream_chat(calls, make_chat(self.model, wording.write(100), 8), timeout_s=CHAT_TIMEOUT_S)
            if record.error is not None:
                raise LoadTestError(f"the first chats failed: {record.error}")

    async def _run_phase(self, name: str, duration_s: float, words_seed: int, batches: list[str]) -> Phase:
        online, folder = self._plan.online, self._plan.out / "raw"
        records = folder / f"{name}.jsonl"
        given = {
            "online-s": duration_s,
            "rate": online.rate_per_s,
            "arrivals": online.arrivals,
            "kind": online.kind,
            "cv": online.cv,
            "tide-ratio": online.tide_ratio,
            "length-scale": online.length_scale,
            "max-prompt-tokens": online.max_prompt_tokens,
            "max-output-tokens": online.max_output_tokens,
            "seed": online.seed,
            "words-seed": words_seed,
            "model": self.model,
            "chat-timeout-s": CHAT_TIMEOUT_S,
            "records": records,
            **({"traces": online.traces} if online.traces is not None else {}),
        }
        options = [word for option, value in given.items() for word in (f"--{option}", str(value))]
        limit_s = duration_s + CHAT_TIMEOUT_S + LOCUST_MARGIN_S
        async with self._watch_status() as readings:
            await run_locust(self._base_url, [*options, *batches], folder / f"{name}.log", limit_s)
        status = "".join(reading.model_dump_json() + "\n" for reading in readings)
        (folder / f"{name}-status.jsonl").write_text(status, encoding="utf-8")
        return Phase(name, read_records(records), duration_s, readings)

    @contextlib.asynccontextmanager
    async def _watch_status(self) -> AsyncIterator[list[StatusReport]]:
        readings: list[StatusReport] = []

        async def watch() -> None:
            async with httpx.AsyncClient(base_url=self._base_url, timeout=STATUS_TIMEOUT_S) as http:
                reader = StatusReader(http)
                while True:
                    reading = await reader.read()
                    if reading is not None:
                        readings.append(reading)
                    await asyncio.sleep(STATUS_PERIOD_S)

        task = asyncio.create_task(watch())
        try:
            yield readings
        finally:
            task.cancel()
            await asyncio.wait([task])
