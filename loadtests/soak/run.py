"""A run: an application under a changing load, sampled all the time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from loadtests.chaos.kinds import find_missing
from loadtests.chaos.stack import Stack
from loadtests.soak.load import ChangingLoad
from loadtests.soak.queue_sampling import QueueSampler
from loadtests.soak.report import SoakReport, fit_all
from loadtests.soak.sampling import Sample, measure_shared_memory, name_processes, sample_processes

READY_POLL_S: Final = 0.5
READY_LIMIT_S: Final = 300.0


class SoakRun:
    """One run.

    Args:
        stack: The application.
        engine: How it is called in the report.
        minutes: How long the load lasts.
        warm_up_minutes: So much of it is not looked at.
        period_s: From one sample to the next.
        clients: Online ones at high water.
        requests: Of a batch, fewest and most.
        seed: Of everything that is drawn.
        on_sample: Hears of each sample.
    """

    def __init__(
        self,
        stack: Stack,
        engine: str,
        *,
        minutes: float,
        warm_up_minutes: float,
        period_s: float,
        clients: int,
        requests: tuple[int, int],
        seed: int,
        on_sample: Callable[[Sample], None] = lambda sample: None,
    ) -> None:
        self._stack = stack
        self._engine = engine
        self._minutes = minutes
        self._warm_up_minutes = warm_up_minutes
        self._period_s = period_s
        self._clients = clients
        self._requests = requests
        self._generator = random.Random(seed)
        self._on_sample = on_sample

    async def run(self) -> SoakReport:
        """Starts everything, loads it, samples, and stops everything.

        Raises:
            ValueError: it was too short for a verdict.
        """
        client = self._stack.connect()
        queue: QueueSampler | None = None
        try:
            await self._stack.start()
            await self._wait_until_ready()
            questions = await self._stack.learn(client)
            queue = QueueSampler(self._stack.settings)
            async with self._stack.connect_online() as http:
                load = ChangingLoad(http, client, questions, self._clients, self._requests, self._generator)
                running = asyncio.create_task(load.run())
                try:
                    samples = await self._sample_on_end(load, queue, running)
                finally:
                    running.cancel()
                    await asyncio.wait([running])
        finally:
            if queue is not None:
                await queue.close()
            await client.close()
            await self._stack.stop()
        return self._report(samples, load)

    async def _wait_until_ready(self) -> None:
        async with asyncio.timeout(READY_LIMIT_S):
            while find_missing(await asyncio.to_thread(self._stack.sort_processes), self._stack.expected):  # noqa: ASYNC110 - nobody says when
                await asyncio.sleep(READY_POLL_S)

    async def _sample_on_end(
        self, load: ChangingLoad, queue: QueueSampler, running: asyncio.Task[None]
    ) -> list[Sample]:
        samples: list[Sample] = []
        began_s = time.monotonic()
        while (at_s := time.monotonic() - began_s) < 60 * self._minutes:
            sample = await asyncio.to_thread(self._sample, at_s)
            sample.queue = await queue.sample()
            sample.clients = load.level
            samples.append(sample)
            self._on_sample(sample)
            await asyncio.wait([running], timeout=max(0.0, at_s + self._period_s - (time.monotonic() - began_s)))
            if running.done():
                await running  # Raises what it has ended with.
        return samples

    def _sample(self, at_s: float) -> Sample:
        names = name_processes(self._stack.sort_processes())
        files, size_mib = measure_shared_memory()
        processes = sample_processes(self._stack.list_processes(), names)
        return Sample(at_s=at_s, processes=processes, shared_files=files, shared_mib=size_mib)

    def _report(self, samples: Sequence[Sample], load: ChangingLoad) -> SoakReport:
        steady = [sample for sample in samples if sample.at_s >= 60 * self._warm_up_minutes]
        growths = fit_all(steady)
        first, last = set(steady[0].processes), set(steady[-1].processes)
        return SoakReport(
            engine=self._engine,
            minutes=self._minutes,
            warm_up_minutes=self._warm_up_minutes,
            load=dict(load.counts),
            growths=growths,
            ended=sorted(first - last),
            begun=sorted(last - first),
            samples=list(samples),
        )
