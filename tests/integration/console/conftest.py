"""The console's routes as the application has them, and Debian's Chromium before them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from conserve.config import Settings
from tests.integration.conftest import run_embedded
from tests.integration.console.served_console import Console, open_console

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One kind of server is enough here."""
    yield from run_embedded(tmp_path_factory.mktemp("state"))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    async with async_playwright() as playwright:
        # Tests may run as root in a container, where Chromium has no sandbox of its own.
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def console(settings: Settings, browser: Browser) -> AsyncIterator[Console]:
    async with open_console(settings, browser) as console:
        yield console
