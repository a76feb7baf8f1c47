"""A picture of the console of a real run: `python -m tests.e2e.picture out/real-run.png`.

Starts the application with the real engine, sends chats that come and go beside a batch, and takes a picture of its
console. Needs Debian's Chromium. Takes about four minutes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from playwright.sync_api import sync_playwright

from tests.e2e.conftest import MODEL, Application, make_lines

SHOWN_S: Final = 95.0
"""The console's pictures go back for 90 s."""
BURSTS: Final = (1, 0, 2, 3, 1, 0, 0, 2, 1)
"""Chats at a time, one number after the other for a ninth of the time each."""


@contextmanager
def chatting(application: Application) -> Iterator[None]:
    """Chats in bursts, until the block ends."""
    over = threading.Event()

    def chat(number: int) -> None:
        client = application.client()
        for at_once in BURSTS:
            if over.is_set():
                return
            until = threading.Event()
            timer = threading.Timer(SHOWN_S / len(BURSTS), until.set)
            timer.start()
            while number < at_once and not until.is_set() and not over.is_set():
                question = f"Tell me something about the number {number}."
                stream = client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": question}], max_tokens=40, stream=True
                )
                for _ in stream:
                    if over.is_set():
                        break
            until.wait()

    threads = [threading.Thread(target=chat, args=(number,)) for number in range(max(BURSTS))]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def take_picture(application: Application, chromium: str, path: Path) -> None:
    """Writes a picture of the console while chats come and go beside a batch."""
    application.wait_for(application.submit(make_lines(12, words=60)).id)
    application.submit(make_lines(200, words=240, max_tokens=64))
    with sync_playwright() as playwright, chatting(application):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 760}, color_scheme="dark")
        page.goto(f"{application.base_url}/console")
        page.wait_for_timeout(SHOWN_S * 1_000)
        page.screenshot(path=path)
        browser.close()


def main(path: Path) -> None:
    """Starts the default model on this machine, and takes its picture."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is needed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        application = Application(Path(folder))
        try:
            application.up()
            take_picture(application, chromium, path)
        finally:
            application.stack.down(print)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
