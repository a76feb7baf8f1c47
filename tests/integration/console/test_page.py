"""The page in a browser, before the real routes and a real Redis."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from conserve.config import Settings
from tests.integration.bench import LONG_MS, TIMEOUT_S, URL, Bench, make_input, stream
from tests.integration.console.served_console import Console, open_console
from tests.integration.jobs.test_admission import see

pytestmark = pytest.mark.asyncio(loop_scope="module")

expect.set_options(timeout=TIMEOUT_S * 1e3)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "device_scale_factor": 2}
FITS = "document.scrollingElement.scrollWidth <= innerWidth"
PICTURE = "canvas => canvas.toDataURL()"
IS_BLANK = """canvas => {
    const blank = Object.assign(document.createElement('canvas'), { width: canvas.width, height: canvas.height });
    return canvas.toDataURL() === blank.toDataURL();
}"""


def jsonl(content: bytes, name: str = "in.jsonl") -> Any:
    return {"name": name, "mimeType": "application/jsonl", "buffer": content}


async def wait_until(condition: Any) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await condition():
            await asyncio.sleep(0.05)


async def submit(page: Page, content: bytes, window: str = "24h") -> None:
    await page.get_by_role("button", name="Submit a batch").click()
    await page.get_by_label("Input file").set_input_files(jsonl(content))
    await page.get_by_label("Completion window").fill(window)
    await page.get_by_role("button", name="Submit", exact=True).click()


def row_of(page: Page, batch_id: str) -> Any:
    return page.locator(f"tr#{batch_id}")


async def test_replicas_are_shown_as_they_report(console: Console) -> None:
    latency = {"default": {"ttft_p50_ms": 120.0, "ttft_p95_ms": 1_210.0, "tbt_p50_ms": 40.0, "tbt_p95_ms": 62.0}}
    busy = {"online_running": 3, "online_waiting": 1, "offline_running": 6, "online_rate_per_s": 1.5}
    await console.report(**busy, latency=latency, stops=4, restored_tokens=0, slo_attainment=0.97, kv_usage=0.5)
    await console.report("r2", state="draining", window=0)
    page = await console.open()
    await expect(page.locator("#link-text")).to_have_text("Live")
    one, two = page.get_by_role("article", name="Replica r1"), page.get_by_role("article", name="Replica r2")
    await expect(one).to_contain_text("answers 3 online requests while 1 more waits, runs 6 batch requests")
    await expect(one).to_contain_text("6 / 8")
    await expect(one).to_contain_text("97 %")
    await expect(two).to_contain_text("draining")
    await expect(page.locator("#ttft")).to_have_text("1,210 ms")
    await expect(page.locator("#ttft")).to_have_class("late")
    await expect(page.locator("#tbt")).to_have_text("62 ms")
    await expect(page.locator("#tbt")).not_to_have_class("late")
    await expect(page.locator("#online-more")).to_have_text("1 waiting · 1.5 requests/s")
    await expect(page.locator("#no-events")).to_be_visible()
    await console.report(**busy, stops=6, restored_tokens=512, slo_attainment=0.97)
    events = page.locator("#events li")
    await expect(events).to_have_count(2)
    await expect(page.locator("#events")).to_contain_text("2 passes of offline work stopped for online requests")
    await expect(page.locator("#events")).to_contain_text("512 tokens restored from host memory")
    await console.board.remove_report("r2")
    await expect(two).to_have_count(0)
    assert console.problems == []


async def test_the_picture_moves_and_stands_still_for_who_wants_that(console: Console) -> None:
    await console.report(online_running=3, offline_running=6)
    for motion in ("no-preference", "reduce"):
        page = await console.open(reduced_motion=motion)
        lane = page.get_by_role("img", name="Load of replica r1")
        await wait_until(lambda lane=lane: _is_drawn(lane))

        async def changed(lane: Any = lane) -> bool:
            before = await lane.evaluate(PICTURE)
            await asyncio.sleep(0.3)
            return bool(await lane.evaluate(PICTURE) != before)

        async def rests(changed: Any = changed) -> bool:
            return not await changed()

        await wait_until(changed)
        if motion == "reduce":
            await wait_until(rests)
    assert console.problems == []


async def _is_drawn(canvas: Any) -> bool:
    return await canvas.count() > 0 and not await canvas.evaluate(IS_BLANK)


async def test_a_batch_from_its_file_to_its_results(console: Console, tmp_path: Path) -> None:
    page = await console.open()
    bench = console.bench
    await expect(page.locator("#no-batches")).to_be_visible()
    await submit(page, make_input(4), "soon")
    window = page.get_by_label("Completion window")
    await expect(page.locator("#window-error")).to_contain_text("is not a completion window")
    await expect(window).to_have_attribute("aria-invalid", "true")
    await expect(window).to_be_focused()
    await window.fill("24h")
    await expect(page.locator("#window-error")).to_be_hidden()
    await page.get_by_role("button", name="Submit", exact=True).click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(page.locator("#batch-rows tr")).to_have_count(1)
    batch_id = str(await page.locator("#batch-rows tr").get_attribute("id"))
    assert len((await bench.service.list_files("batch")).data) == 1, "the file was sent once"
    await bench.keeper.run_once()
    row = row_of(page, batch_id)
    await expect(row).to_contain_text("in progress")
    await expect(row).to_contain_text("end not known yet")
    await bench.finish(await bench.queue.claim(batch_id, 1, LONG_MS, "a"))
    await expect(row).to_contain_text("1 of 4")
    await expect(row.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "1")
    assert await _download(page, row, "Results so far") == await _ids_done(bench, batch_id, 1)
    await bench.finish(await bench.queue.claim(batch_id, 3, LONG_MS, "a"))
    await bench.end(batch_id)
    await expect(row).to_contain_text("completed")
    assert len(await _download(page, row, "Output")) == 4
    problems = [one for one in console.problems if "400" not in one]
    assert problems == []


async def _download(page: Page, row: Any, name: str) -> list[str]:
    async with page.expect_download() as download:
        await row.get_by_role("button", name=name).click()
    content = Path(await (await download.value).path()).read_text(encoding="utf-8")
    return [json.loads(line)["custom_id"] for line in content.splitlines()]


async def _ids_done(bench: Bench, batch_id: str, count: int) -> list[str]:
    lines = [one async for one in await bench.service.stream_results(batch_id)]
    ids = [json.loads(line)["custom_id"] for line in b"".join(lines).splitlines() if line.strip()]
    assert len(ids) == count
    return ids


@pytest.mark.parametrize(
    ("label", "value", "field", "message"),
    [("Priority", "high", "priority", "whole number"), ("Priority", "500", "priority", "between -100 and 100")],
)
async def test_what_is_wrong_is_said_beside_its_field(
    console: Console, label: str, value: str, field: str, message: str
) -> None:
    page = await console.open()
    await page.get_by_role("button", name="Submit a batch").click()
    await page.get_by_role("button", name="Submit", exact=True).click()
    await expect(page.locator("#file-error")).to_have_text("Choose a file.")
    await page.get_by_label("Input file").set_input_files(jsonl(make_input(1)))
    await page.get_by_label(label).fill(value)
    await page.get_by_role("button", name="Submit", exact=True).click()
    await expect(page.locator(f"#{field}-error")).to_contain_text(message)
    await expect(page.get_by_label(label)).to_be_focused()
    await page.get_by_role("button", name="Close").click()

    async def is_deleted() -> bool:
        return not (await console.bench.service.list_files()).data

    await wait_until(is_deleted)


async def test_where_the_window_is_too_short_the_earliest_that_fits_is_offered(console: Console) -> None:
    await see(console.bench.redis, console.bench.settings)
    page = await console.open()
    await submit(page, b"x" * 200_000, "10m")
    await expect(page.locator("#window-error")).to_contain_text("too short")
    await page.get_by_role("button", name="Use 53m, the earliest that fits").click()
    await expect(page.get_by_label("Completion window")).to_have_value("53m")
    await page.get_by_role("button", name="Submit", exact=True).click()
    await expect(page.locator("#batch-rows tr")).to_contain_text("53m")


async def test_what_is_wrong_with_a_file_is_said_with_its_lines(console: Console) -> None:
    page = await console.open()
    await submit(page, make_input(1) + b"{\n")
    await expect(page.locator("#batch-rows tr")).to_have_count(1)
    await console.bench.keeper.run_once()
    await expect(page.locator("#batch-rows tr")).to_contain_text("Line 2:")
    await expect(page.locator("#batch-rows tr")).to_contain_text("failed")


async def test_a_batch_is_paused_and_cancelled_when_that_is_confirmed(console: Console) -> None:
    batch_id = await console.bench.start(3)
    page = await console.open()
    row = row_of(page, batch_id)
    await row.get_by_role("button", name="Pause").click()
    await expect(row).to_contain_text("paused")
    assert (await console.bench.get(batch_id)).paused_at
    await row.get_by_role("button", name="Resume").click()
    await expect(row).to_contain_text("in progress")
    await row.get_by_role("button", name="Cancel").click()
    dialog = page.get_by_role("dialog", name="Cancel this batch?")
    await expect(dialog).to_contain_text("0 requests of 3 are done")
    await expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(dialog).to_have_count(0)
    assert (await console.bench.get(batch_id)).status == "in_progress"
    await row.get_by_role("button", name="Cancel").click()
    await dialog.get_by_role("button", name="Cancel batch").click()
    await expect(row).to_contain_text("cancelling")
    await console.bench.end(batch_id)
    await expect(row).to_contain_text("cancelled")
    assert console.problems == []


async def test_it_says_when_its_figures_are_old(console: Console) -> None:
    await console.report(online_running=3)
    page = await console.open()
    link, body = page.locator("#link-text"), page.locator("body")
    await expect(link).to_have_text("Live")
    console.front.is_away = True
    await expect(link).to_contain_text("the queue is not available")
    await expect(link).to_contain_text("figures of")
    await expect(body).to_have_class("stale")
    console.front.is_away = False
    await expect(link).to_have_text("Live")
    await expect(body).not_to_have_class("stale")
    await page.route("**/conserve/v1/events", lambda route: route.abort())
    console.front.is_ending = True
    await expect(link).to_contain_text("next try in")
    await expect(body).to_have_class("stale")
    console.front.is_ending = False
    await page.unroute("**/conserve/v1/events")
    await page.evaluate("document.getElementById('retry').click()")
    await expect(link).to_have_text("Live")
    await expect(page.locator("#announce")).to_have_text("Live again")


async def test_a_tenant_names_its_key_and_sees_its_own(settings: Settings, browser: Browser) -> None:
    tenants = {"a": {"api_keys": ["sk-of-a"]}, "b": {"api_keys": ["sk-of-b"]}}
    settings = Settings.model_validate(settings.model_dump(mode="json") | {"tenants": tenants})
    async with open_console(settings, browser) as console:
        ids, files = {}, {}
        for tenant in tenants:
            own = console.bench.service.for_tenant(tenant)
            file = await own.upload_file("in.jsonl", "batch", stream(make_input(1)))
            files[tenant] = file.id
            ids[tenant] = (await own.create_batch(file.id, URL, "24h")).id
        page = await console.open()
        field = page.get_by_label("Key", exact=True)
        await expect(field).to_be_focused()
        await field.fill("sk-wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#key-error")).to_have_text("The API key is not valid here.")
        await field.fill("sk-of-a")
        await page.keyboard.press("Enter")
        await expect(row_of(page, ids["a"])).to_be_visible()
        await expect(page.locator("#model")).to_contain_text("· a")
        await page.reload()
        await expect(row_of(page, ids["a"])).to_be_visible()
        assert ids["b"] not in await page.content()
        await row_of(page, ids["a"]).get_by_role("button", name="Pause").click()
        await expect(row_of(page, ids["a"])).to_contain_text("paused")
        get = "file => import('/console/api.js').then(api => api.download(`v1/files/${file}/content`, 'in.jsonl'))"
        async with page.expect_download() as download:
            await page.evaluate(get, files["a"])
        assert Path(await (await download.value).path()).read_bytes() == make_input(1)
        await page.get_by_role("button", name="API key").click()
        await page.get_by_role("button", name="Forget it").click()
        await expect(row_of(page, ids["a"])).to_have_count(0)
        await expect(field).to_be_focused()
        assert await page.evaluate("sessionStorage.length") == 0
        assert not [url for url in console.requested if "sk-of" in url]


async def test_it_goes_by_keyboard_and_fits_a_phone(console: Console) -> None:
    batch_id = await console.bench.start(3)
    await console.report(online_running=3, offline_running=6)
    page = await console.open(**PHONE, color_scheme="dark")
    table = page.get_by_role("table", name="Batches")
    await expect(table.get_by_role("row")).to_have_count(2)
    await expect(table.get_by_role("columnheader")).to_have_count(5)
    await expect(row_of(page, batch_id).get_by_role("cell")).to_have_count(5)
    console.front.is_away = True
    await expect(page.locator("body")).to_have_class("stale")
    assert await page.evaluate(FITS)
    console.front.is_away = False
    await expect(page.locator("#link-text")).to_have_text("Live")
    assert await page.evaluate(FITS)
    reached = []
    for _ in range(6):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.textContent"))
    assert reached[:4] == ["Skip to batches", "Submit a batch", "Pause", "Cancel"]
    await page.get_by_role("button", name="Submit a batch").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Input file")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(page.get_by_role("button", name="Submit a batch")).to_be_focused()
    names = await page.evaluate("[...document.querySelectorAll('button')].map(one => one.textContent.trim())")
    assert all(re.match(r"\w", name) for name in names if name is not None and name != "")
    assert console.problems == []
