"""Handlers of signals that a library replaces behind Python's back."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes, os, signal
from conserve.launch.interruption import renew_handlers
signal.signal(signal.SIGTERM, lambda number, frame: print("cleaned up", flush=True))
ctypes.CDLL(None).signal(signal.SIGTERM, None)
renew_handlers()
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_handler_that_was_replaced_is_put_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "cleaned up\n")
