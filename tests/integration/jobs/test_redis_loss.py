"""The server is killed in the middle of a batch and comes back."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from conserve.config import Settings
from conserve.jobs import embedded
from conserve.jobs.connection import connect
from conserve.jobs.files import FileStore
from conserve.jobs.results import FinishedRequest, ResultWriter
from tests.integration.bench import LONG_MS, TIMEOUT_S, Bench


async def test_a_batch_survives_the_loss_of_redis(tmp_path: Path) -> None:
    settings = Settings.model_validate({"state_dir": tmp_path, "jobs": {"lease_ms": LONG_MS}})
    redis = await connect(settings)
    try:
        bench = Bench(redis, FileStore(settings.files_url), settings)
        batch_id = await bench.start(6)
        claimed = await bench.queue.claim(batch_id, 4, 1, "a")
        await bench.finish(claimed[:1])
        writer = ResultWriter(bench.queue, bench.store, "w1")
        writer.add(FinishedRequest(batch_id, 2, claimed[1].fence, "output", await bench.answer(claimed[1])))

        process = psutil.Process(int((tmp_path / "redis" / "redis.pid").read_text()))
        process.send_signal(signal.SIGKILL)
        process.wait(TIMEOUT_S)
        bench.now_s += 100
        with pytest.raises(RedisConnectionError):
            await bench.keeper.run_once()
        assert list((await writer.flush()).failed) == [batch_id]
        await asyncio.to_thread(embedded.ensure_running, tmp_path)

        # Every lease ran out meanwhile, yet the keeper leaves them to those who still work on them.
        await bench.keeper.run_once()
        assert (await writer.flush()).accepted == {batch_id: {2}}
        renewed = await bench.queue.renew(batch_id, {3: claimed[2].fence, 4: claimed[3].fence}, LONG_MS)
        assert (renewed.lost, renewed.cancelled) == (frozenset(), False)
        bench.now_s += 100
        await bench.keeper.run_once()
        await bench.finish(claimed[2:])
        await bench.finish(await bench.queue.claim(batch_id, 6, LONG_MS, "b"))
        _, output, _ = await bench.end(batch_id)
        assert output == [f"id-{i}" for i in range(1, 7)]
    finally:
        await redis.aclose()
        assert embedded.stop(tmp_path)
