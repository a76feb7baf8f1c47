"""Makes the pictures in docs: the page before the real routes, while replicas report a written course of load."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from playwright.async_api import async_playwright

from conserve.config import Settings
from tests.integration.bench import LONG_MS, make_input
from tests.integration.conftest import run_embedded
from tests.integration.console.served_console import Console, open_console

DESKTOP: Final[dict[str, Any]] = {"viewport": {"width": 1180, "height": 860}}
PHONE: Final[dict[str, Any]] = {
    "viewport": {"width": 390, "height": 1200},
    "device_scale_factor": 1.5,
    "has_touch": True,
}
SHOTS: Final[dict[str, dict[str, Any]]] = {
    "console-dark": DESKTOP | {"color_scheme": "dark"},
    "console-light": DESKTOP | {"color_scheme": "light"},
    "console-phone": PHONE | {"color_scheme": "dark"},
}
IMAGES: Final = Path(__file__).parents[3] / "docs" / "images"
COURSE_S: Final = 80.0
REPLICAS: Final = ("rep-7f3a9c", "rep-b41e02")


class Course:
    """The load of one replica, second by second: waves of chats, and a batch that fills what they leave."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._random = random.Random(number)
        self._totals = dict.fromkeys(
            ("stops", "resumed_passes", "offline_preemptions", "restored_tokens", "offline_computed_tokens"), 0
        )

    def report(self, at_s: float) -> dict[str, Any]:
        """What the replica says at this moment."""
        chance = self._random.random
        wave = max(0.0, math.sin((at_s + 19 * self._number) / 9)) ** 2
        online = round(7 * wave + chance() * 1.2)
        window = max(2, 14 - online)
        offline = max(0, window - round(2 * chance()))
        totals = self._totals
        totals["offline_computed_tokens"] += round(70 * offline)
        if online > 3 and chance() < 0.12:
            totals["stops"] += 1
            totals["resumed_passes"] += chance() < 0.7
        if online > 5 and chance() < 0.1:
            totals["offline_preemptions"] += 1
        if online < 2 and chance() < 0.05:
            totals["restored_tokens"] += 16 * self._random.randint(8, 60)
        latency = {
            "ttft_p50_ms": 150 + 25 * online,
            "ttft_p95_ms": round(220 + 46 * online + 30 * chance()),
            "tbt_p50_ms": 38 + 2 * online,
            "tbt_p95_ms": round(55 + 5 * online + 6 * chance(), 1),
        }
        return {
            "online_running": online,
            "online_waiting": int(online > 6),
            "offline_running": offline,
            "window": window,
            "kv_usage": min(0.97, 0.08 * online + 0.045 * offline),
            "online_rate_per_s": round(0.5 * online, 2),
            "headroom_tokens_per_s": max(0, 1_900 - 190 * online),
            "slo_attainment": round(0.997 - 0.004 * wave, 4),
            "latency": {"default": latency} if online else {},
            **totals,
        }


async def make_batches(console: Console) -> None:
    """One of each kind."""
    bench = console.bench
    ended = await bench.start(12)
    await bench.finish(await bench.queue.claim(ended, 12, LONG_MS, "a"))
    await bench.end(ended)
    await bench.submit(make_input(2) + b'{"custom_id": "three"\n')
    await bench.keeper.run_once()
    paused = await bench.start(60)
    await bench.finish(await bench.queue.claim(paused, 9, LONG_MS, "a"))
    await bench.service.pause_batch(paused)
    running = await bench.start(240)
    await bench.finish(await bench.queue.claim(running, 168, LONG_MS, "a"))
    await bench.queue.predict({running: (int(time.time()) + 540) * 1000})


async def take_pictures(settings: Settings) -> None:
    """Lets the course run, and looks at it in each way at its end."""
    courses = {name: Course(number) for number, name in enumerate(REPLICAS)}
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        async with open_console(settings, browser) as console:
            await make_batches(console)
            for name, course in courses.items():
                await console.report(name, **course.report(0))
            await console.bench.redis.set(console.bench.queue._keys.controller, "here")  # As a controller does.
            pages = {name: await console.open(**options) for name, options in SHOTS.items()}
            began_s = time.monotonic()
            while (at_s := time.monotonic() - began_s) < COURSE_S:
                for name, course in courses.items():
                    await console.report(name, **course.report(at_s))
                await asyncio.sleep(0.4)
            for name, page in pages.items():
                await page.bring_to_front()
                await asyncio.sleep(1.0)
                await page.screenshot(path=IMAGES / f"{name}.png")
        await browser.close()


def main() -> None:
    """Makes them."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, closing(run_embedded(Path(folder))) as servers:  # type: ignore[type-var]
        jobs = {"redis_url": next(servers), "namespace": f"t{secrets.token_hex(6)}", "lease_ms": LONG_MS}
        slo = {"ttft_slo_ms": 500, "tbt_slo_ms": 100}
        asyncio.run(take_pictures(Settings.model_validate({"jobs": jobs, "state_dir": folder, "slo": slo})))


if __name__ == "__main__":
    sys.exit(main())
