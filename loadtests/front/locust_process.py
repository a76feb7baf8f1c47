"""Locust in a process of its own, ended with its parent's work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
END_LIMIT_S: Final = 10.0
SHOWN_LINES: Final = 3


class LocustError(RuntimeError):
    """Locust did not do its work; the message says what it printed last."""


async def run_locust(base_url: str, arguments: Sequence[str], log_path: Path, limit_s: float) -> None:
    """Runs a load to its end; what locust prints goes to `log_path`.

    When this is cancelled, locust is ended before it returns; it cancels its batches then.

    Args:
        base_url: The server.
        arguments: Options of `locust_options`.
        log_path: Written anew.
        limit_s: Locust is ended after so long.

    Raises:
        LocustError: it failed, or was not done in time. Failed requests are no failure of locust's.
    """
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--exit-code-on-error", "0", "--host", base_url, *arguments]
    # The folder of this package must be found whatever the current folder is.
    root = str(Path(__file__).parents[2])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        # A session of its own: Ctrl-C of a terminal reaches the parent alone, which ends this one in its turn.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
        )
        try:
            async with asyncio.timeout(limit_s):
                code = await process.wait()
        except TimeoutError:
            raise LocustError(f"locust is not done after {limit_s:g} s; see {log_path}") from None
        finally:
            await _end(process)
    if code != 0:
        raise LocustError(f"locust failed with {code}: {_tail(log_path)}; see {log_path}")


async def _end(process: asyncio.subprocess.Process) -> None:
    for send in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            send()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_LIMIT_S):
                await process.wait()


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " ".join(line.strip() for line in lines[-SHOWN_LINES:]) or "it said nothing"
